//! The framing of HTTP/1 as the bytes come, before hyper reads them: what two readers could understand differently is
//! refused and the connection closed (SR31). hyper is lenient where the standard lets a server be: it takes both lengths,
//! bare line feeds and folded fields, and answers its own refusals without our envelope.

use std::borrow::Cow;

use cxmpute_wire::Code;

/// Largest head that is looked at; the edge refuses far smaller ones with better words.
const MAX_HEAD: usize = 64 * 1024;
/// Most fields of a head, as above.
const MAX_FIELDS: usize = 128;
/// Longest line of a chunk's size, with its extensions.
const MAX_SIZE_LINE: usize = 256;

/// Why a connection is not read on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code, with its status.
    pub code: Code,
    /// One sentence.
    pub message: Cow<'static, str>,
}

fn refuse<T>(message: impl Into<Cow<'static, str>>) -> Result<T, Refusal> {
    Err(Refusal { code: Code::InvalidParameter, message: message.into() })
}

/// Follows the requests of one connection.
#[derive(Debug, Default)]
pub struct Framing {
    at: At,
    /// The line or head that has begun.
    kept: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    Trailer,
}

impl Framing {
    /// Takes bytes in.
    ///
    /// # Errors
    /// They are ambiguous; the connection must end.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            bytes = match self.at {
                At::Head => self.head(bytes)?,
                At::Body(left) | At::Chunk(left) => self.skip(bytes, left),
                At::ChunkSize | At::Trailer => self.line(bytes)?,
            };
        }
        Ok(())
    }

    fn skip<'a>(&mut self, bytes: &'a [u8], left: u64) -> &'a [u8] {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - length as u64;
        self.at = match (self.at, left) {
            (At::Body(_), 0) => At::Head,
            (At::Body(_), left) => At::Body(left),
            (_, 0) => At::ChunkSize,
            (_, left) => At::Chunk(left),
        };
        &bytes[length..]
    }

    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        let bytes = if self.kept.is_empty() { skip_empty_lines(bytes) } else { bytes };
        if self.kept.is_empty()
            && let Some(end) = end_of_head(bytes)
        {
            self.at = judge(&bytes[..end])?;
            return Ok(&bytes[end..]);
        }
        let mut from = self.kept.len().saturating_sub(3);
        self.kept.extend_from_slice(bytes);
        while self.kept.starts_with(b"\r\n") {
            self.kept.drain(..2);
            from = 0;
        }
        let Some(end) = end_of_head(&self.kept[from..]).map(|end| from + end) else {
            check_line_ends(&self.kept[from.saturating_sub(1)..])?;
            if self.kept.len() > MAX_HEAD {
                let message = format!("The head is larger than {MAX_HEAD} bytes.");
                return Err(Refusal { code: Code::HeadTooLarge, message: message.into() });
            }
            return Ok(&[]);
        };
        self.at = judge(&self.kept[..end])?;
        let rest = self.kept.len() - end;
        self.kept.clear();
        Ok(&bytes[bytes.len() - rest..])
    }

    /// The line of a chunk's size, the empty line after a chunk, or a line of the trailer.
    fn line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            self.kept.extend_from_slice(bytes);
            if self.kept.len() > MAX_HEAD || (self.at == At::ChunkSize && self.kept.len() > MAX_SIZE_LINE) {
                return refuse("A line of the chunked body is too long.");
            }
            return Ok(&[]);
        };
        self.kept.extend_from_slice(&bytes[..end]);
        let line = std::mem::take(&mut self.kept);
        let Some((b'\r', line)) = line.split_last() else {
            return refuse("A line of the chunked body ends without a carriage return.");
        };
        self.at = match (self.at, line.is_empty()) {
            (At::Trailer, true) => At::Head,
            (At::Trailer, false) => At::Trailer,
            // The end of the chunk before.
            (_, true) => At::ChunkSize,
            (_, false) => match chunk_size(line) {
                Some(0) => At::Trailer,
                Some(size) => At::Chunk(size),
                None => return refuse("The size of a chunk is not a hexadecimal number."),
            },
        };
        Ok(&bytes[end + 1..])
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii_end();
    let plain = !digits.is_empty() && digits.len() <= 16 && digits.iter().all(u8::is_ascii_hexdigit);
    plain.then(|| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())?
}

/// Empty lines before a request are allowed.
fn skip_empty_lines(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes
}

/// One past the empty line that ends a head.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn check_line_ends(bytes: &[u8]) -> Result<(), Refusal> {
    let mut before = b'\r';
    for byte in bytes {
        if *byte == b'\n' && before != b'\r' {
            return refuse("A line of the head ends without a carriage return.");
        }
        before = *byte;
    }
    Ok(())
}

/// Judges a whole head, with its empty line; says what follows it.
fn judge(head: &[u8]) -> Result<At, Refusal> {
    let mut lines = head[..head.len() - 4].split(|byte| *byte == b'\n');
    let mut request = lines.next().unwrap_or_default();
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        request = line_of(request)?;
    }
    let (old, target) = judge_request(request)?;
    let mut fields = Fields::default();
    while let Some(line) = lines.next() {
        // The last line's end is part of the empty line.
        let line = if lines.peek().is_some() { line_of(line)? } else { line };
        fields.take(line)?;
    }
    fields.judge(old, target)
}

fn line_of(line: &[u8]) -> Result<&[u8], Refusal> {
    match line.split_last() {
        Some((b'\r', line)) => Ok(line),
        _ => refuse("A line of the head ends without a carriage return."),
    }
}

fn is_control(byte: &u8) -> bool {
    (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f
}

/// The request line: whether it is HTTP/1.0, and its target.
fn judge_request(line: &[u8]) -> Result<(bool, &[u8]), Refusal> {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else {
        return refuse("The request line is not `METHOD target HTTP/1.1`.");
    };
    let plain = !method.is_empty() && method.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    if !plain || target.is_empty() || target.iter().any(|byte| *byte <= 0x20 || *byte >= 0x7f) {
        return refuse("The request line is not `METHOD target HTTP/1.1`.");
    }
    match version {
        b"HTTP/1.1" => Ok((false, target)),
        b"HTTP/1.0" => Ok((true, target)),
        _ => refuse("The request line is not `METHOD target HTTP/1.1`."),
    }
}

#[derive(Default)]
struct Fields<'a> {
    count: usize,
    length: Option<u64>,
    chunked: bool,
    host: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn take(&mut self, line: &'a [u8]) -> Result<(), Refusal> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            let message = format!("The head has more than {MAX_FIELDS} fields.");
            return Err(Refusal { code: Code::HeadTooLarge, message: message.into() });
        }
        if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
            return refuse("A field of the head is folded over several lines.");
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return refuse("A line of the head has no colon.");
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(|byte| *byte <= 0x20 || *byte >= 0x7f) {
            return refuse("A name of a field of the head holds a space or a control character.");
        }
        if value.iter().any(is_control) {
            return refuse("A field of the head holds a control character.");
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
            let length =
                std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
            if length.is_none() || self.length.is_some() {
                return refuse("Content-Length must be one whole number.");
            }
            self.length = length;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return refuse("Transfer-Encoding may only be `chunked`, once.");
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") && self.host.replace(value).is_some() {
            return refuse("The head has more than one Host.");
        }
        Ok(())
    }

    fn judge(self, old: bool, target: &[u8]) -> Result<At, Refusal> {
        if self.chunked && (self.length.is_some() || old) {
            return refuse("The length of the body is given in two ways.");
        }
        if self.host.is_none() && !old {
            return refuse("The head has no Host.");
        }
        let authority = target
            .strip_prefix(b"http://".as_slice())
            .or_else(|| target.strip_prefix(b"https://".as_slice()))
            .map(|rest| rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default());
        if authority
            .is_some_and(|authority| self.host.is_none_or(|host| !host.eq_ignore_ascii_case(authority)))
        {
            return refuse("The address names another host than the field Host.");
        }
        Ok(match (self.chunked, self.length) {
            (true, _) => At::ChunkSize,
            (false, None | Some(0)) => At::Head,
            (false, Some(length)) => At::Body(length),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(text: &str) -> Option<Cow<'static, str>> {
        let whole = Framing::default().feed(text.as_bytes()).err().map(|refusal| refusal.message);
        let mut framing = Framing::default();
        let split = text.as_bytes().iter().find_map(|byte| framing.feed(&[*byte]).err());
        assert_eq!(whole, split.map(|refusal| refusal.message), "byte by byte: {text:?}");
        whole
    }

    #[test]
    fn ordinary_requests_pass_however_they_are_cut() {
        for text in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nPOST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n\n\0\r\n\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nab\ncd\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET http://a/b HTTP/1.1\r\nhost: A\r\nx-utf8: \u{e9}\r\nempty:\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
        ] {
            assert_eq!(feed(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let head = |fields: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n");
        let mut texts: Vec<String> = [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 5",
            "content-length: 5\r\ncontent-length: 5",
            "content-length: +5",
            "content-length: 5, 5",
            "content-length: 0x5",
            "transfer-encoding: identity",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "x: a\r\n folded",
            "x : a",
            "x\0: a",
            "x: a\0b",
            "host: b",
            "no colon",
            ": empty",
        ]
        .into_iter()
        .map(head)
        .collect();
        texts.extend(
            [
                "GET / HTTP/1.1\nhost: a\n\n",
                "GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
                "GET / HTTP/1.1\r\n\r\n",
                "GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
                "GET / HTTP/1.1 x\r\nhost: a\r\n\r\n",
                "GET / HTTP/3.0\r\nhost: a\r\n\r\n",
                "GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
                "GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n",
                "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\nabcde\r\n",
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n",
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n11111111111111111\r\n",
            ]
            .map(str::to_owned),
        );
        for text in texts {
            assert!(Framing::default().feed(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_head_without_end_is_refused_in_time() {
        let mut framing = Framing::default();
        let mut fed = 0;
        let refusal = loop {
            fed += 1000;
            match framing.feed(&[b'a'; 1000]) {
                Ok(()) => assert!(fed < 2 * MAX_HEAD),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!(refusal.code, Code::HeadTooLarge);
    }
}
