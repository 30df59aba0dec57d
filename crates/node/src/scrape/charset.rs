//! From bytes to text: the byte order mark, the declared charset, the page's own word, UTF-8, in this order.

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

/// How much of a page is searched for its own word, as browsers do.
const PRESCAN_BYTES: usize = 1024;

/// The text of a body. Bytes that make no sense become U+FFFD.
#[must_use]
pub fn decode(body: &[u8], content_type: Option<&str>) -> String {
    let declared = content_type.and_then(declared).or_else(|| in_page(body));
    let encoding = match declared {
        Some(encoding) => encoding,
        None if std::str::from_utf8(body).is_ok() => UTF_8,
        // What the web is written in when it says nothing and is not UTF-8.
        None => WINDOWS_1252,
    };
    encoding.decode(body).0.into_owned()
}

fn declared(content_type: &str) -> Option<&'static Encoding> {
    let parameter = content_type.split(';').skip(1).find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then_some(value)
    })?;
    Encoding::for_label(parameter.trim().trim_matches(['"', '\'']).as_bytes())
}

/// `<meta charset=…>` and `<meta http-equiv content="…charset=…">` look the same from here.
fn in_page(body: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&body[..body.len().min(PRESCAN_BYTES)]).to_ascii_lowercase();
    head.split("<meta").skip(1).find_map(|tag| {
        let tag = tag.split('>').next()?;
        let (_, value) = tag.split_once("charset")?;
        let value = value.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
        let end = value.find(['"', '\'', ' ', ';', '/']).unwrap_or(value.len());
        // A page that claims UTF-16 in readable ASCII is mistaken; browsers read it as UTF-8.
        let encoding = Encoding::for_label(&value.as_bytes()[..end])?;
        Some(if encoding.is_ascii_compatible() { encoding } else { UTF_8 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_as_it_says_it_is() {
        assert_eq!(decode(b"caf\xe9", Some("text/html; charset=ISO-8859-1")), "caf\u{e9}");
        assert_eq!(decode("caf\u{e9}".as_bytes(), Some("text/html; Charset=\"utf-8\"")), "caf\u{e9}");
        assert_eq!(
            decode(b"<meta charset='windows-1251'>\xcf", None),
            "<meta charset='windows-1251'>\u{41f}"
        );
        let old = b"<META http-equiv=x content=\"text/html; charset=Shift_JIS\">\x83\x41";
        assert!(decode(old, Some("text/html")).ends_with('\u{30a2}'));
        assert_eq!(decode("\u{feff}caf\u{e9}".as_bytes(), Some("text/html; charset=latin1")), "caf\u{e9}");
        assert_eq!(decode("caf\u{e9}".as_bytes(), None), "caf\u{e9}");
        assert_eq!(decode(b"caf\xe9", None), "caf\u{e9}");
        assert_eq!(decode(b"<meta charset=utf-16>ok", None), "<meta charset=utf-16>ok");
    }
}
