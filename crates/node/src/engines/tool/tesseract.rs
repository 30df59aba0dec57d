//! tesseract: a picture on its standard input, a table of words with places and confidences on its standard output.

use base64::Engine as _;
use bytes::Bytes;
use cxmpute_wire::sight::{ReadRequest, ReadText, ReadWord};

use super::{Failed, Tool, words};

/// Most bytes of the table.
const OUTPUT: usize = 16 * 1024 * 1024;

/// Reads the text in a picture.
pub(super) async fn read(tool: &Tool, body: &[u8]) -> Result<Bytes, Failed> {
    let request: ReadRequest =
        serde_json::from_slice(body).map_err(|_| Failed::Request("the request is no request to read"))?;
    let picture = base64::engine::general_purpose::STANDARD
        .decode(&request.image)
        .map_err(|_| Failed::Request("the picture is no base64"))?;
    let plain = |name: &String| {
        (2..=16).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
    };
    if !request.languages.iter().all(plain) || request.languages.len() > 4 {
        return Err(Failed::Request("this is no list of languages"));
    }
    let mut arguments = words(&["stdin", "stdout"]);
    if !request.languages.is_empty() {
        arguments.extend(["-l".to_owned(), request.languages.join("+")]);
    }
    // Whole pages, as they are laid out.
    arguments.extend(words(&["--psm", "3", "tsv"]));
    let printed = tool.run(&arguments, &[("OMP_THREAD_LIMIT", "1")], &picture, &[], OUTPUT).await?;
    let text = understand(&String::from_utf8_lossy(&printed));
    Ok(serde_json::to_vec(&text).unwrap_or_default().into())
}

/// Reads the table: columns level, page, block, paragraph, line, word, left, top, width, height, confidence, text. Words of
/// a line are joined by spaces, lines by line ends, blocks and paragraphs by an empty line.
fn understand(table: &str) -> ReadText {
    let mut read = ReadText::default();
    let mut last: Option<(u32, u32, u32)> = None;
    for row in table.lines() {
        let cells: Vec<&str> = row.splitn(12, '\t').collect();
        let [level, _, block, paragraph, line, _, left, top, width, height, confidence, text] = cells[..]
        else {
            continue;
        };
        let number = |cell: &str| cell.parse::<u32>().ok();
        let (Some(5), false) = (number(level), text.trim().is_empty()) else { continue };
        let place = [left, top, width, height].map(number);
        let ([Some(left), Some(top), Some(width), Some(height)], Ok(sure)) =
            (place, confidence.parse::<f64>())
        else {
            continue;
        };
        let here = (number(block).unwrap_or(0), number(paragraph).unwrap_or(0), number(line).unwrap_or(0));
        read.text.push_str(match last {
            None => "",
            Some(before) if before == here => " ",
            Some((block, paragraph, _)) if (block, paragraph) == (here.0, here.1) => "\n",
            Some(_) => "\n\n",
        });
        last = Some(here);
        let text = text.trim();
        read.text.push_str(text);
        read.words.push(ReadWord {
            text: text.to_owned(),
            place: [left, top, left.saturating_add(width), top.saturating_add(height)],
            confidence: (sure / 100.0).clamp(0.0, 1.0),
        });
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_becomes_lines_and_words() {
        let table = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n\
            4\t1\t1\t1\t1\t0\t45\t50\t393\t43\t-1\t\n\
            5\t1\t1\t1\t1\t1\t45\t50\t218\t43\t95.5\tInvoice\n\
            5\t1\t1\t1\t1\t2\t288\t52\t150\t41\t90\t4711\n\
            5\t1\t1\t1\t2\t1\t45\t90\t10\t10\t80\tline\n\
            5\t1\t2\t1\t1\t1\t45\t150\t10\t10\t80\tblock\n\
            5\t1\t2\t1\t1\t2\t60\t150\t10\t10\t80\t \n\
            5\t1\tx\n";
        let read = understand(table);
        assert_eq!(read.text, "Invoice 4711\nline\n\nblock");
        assert_eq!(
            read.words[1],
            ReadWord { text: "4711".into(), place: [288, 52, 438, 93], confidence: 0.9 }
        );
        assert_eq!(read.words.len(), 4);
        assert_eq!(understand(""), ReadText::default());
    }
}
