//! The form in which sound goes to an engine: `multipart/form-data`, as `OpenAI`'s route for transcripts takes it, so that
//! an engine that speaks that route needs no translation. The model stands first and at a known place, so that a node
//! can put its engine's own name there.

use crate::RequestId;

/// The line between two parts. It is made of the request's id, which no client knows before its sound is read.
fn boundary(request: &RequestId) -> String {
    format!("cxmpute-{}", request.as_str())
}

/// The content type of a form of this request.
#[must_use]
pub fn content_type(request: &RequestId) -> String {
    format!("multipart/form-data; boundary={}", boundary(request))
}

/// A form: the model, plain fields, and a file named `audio.wav`.
#[must_use]
pub fn compose(request: &RequestId, model: &str, fields: &[(&str, String)], wave: &[u8]) -> Vec<u8> {
    let line = boundary(request);
    let mut form = head(&line, model).into_bytes();
    for (name, value) in fields {
        form.extend_from_slice(
            format!("Content-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n--{line}\r\n")
                .as_bytes(),
        );
    }
    form.extend_from_slice(
        b"Content-Disposition: form-data; name=\"file\"; filename=\"audio.wav\"\r\nContent-Type: audio/wav\r\n\r\n",
    );
    form.extend_from_slice(wave);
    form.extend_from_slice(format!("\r\n--{line}--\r\n").as_bytes());
    form
}

fn head(line: &str, model: &str) -> String {
    format!("--{line}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--{line}\r\n")
}

/// The same form with another name of the model; none when it does not begin as [`compose`] writes it.
#[must_use]
pub fn with_model(request: &RequestId, form: &[u8], planned: &str, model: &str) -> Option<Vec<u8>> {
    let line = boundary(request);
    let rest = form.strip_prefix(head(&line, planned).as_bytes())?;
    let mut renamed = head(&line, model).into_bytes();
    renamed.extend_from_slice(rest);
    Some(renamed)
}

/// A form that was taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The plain fields by name, the model first.
    pub fields: Vec<(&'a str, &'a str)>,
    /// The sound.
    pub file: &'a [u8],
}

/// The parts of a form that [`compose`] wrote, for engines that are no HTTP servers.
#[must_use]
pub fn take_apart<'a>(request: &RequestId, form: &'a [u8]) -> Option<Parts<'a>> {
    let line = boundary(request);
    let mut rest = form.strip_prefix(format!("--{line}\r\n").as_bytes())?;
    let mut fields = Vec::new();
    let between = format!("\r\n--{line}\r\n");
    loop {
        let end = find(rest, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&rest[..end]).ok()?;
        let body = &rest[end + 4..];
        let name = head.strip_prefix("Content-Disposition: form-data; name=\"")?.split('"').next()?;
        if name == "file" {
            let file = body.strip_suffix(format!("\r\n--{line}--\r\n").as_bytes())?;
            return Some(Parts { fields, file });
        }
        let length = find(body, between.as_bytes())?;
        fields.push((name, std::str::from_utf8(&body[..length]).ok()?));
        rest = &body[length + between.len()..];
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_renamed_and_taken_apart() {
        let request = RequestId::from_tail("abc");
        let sound = b"RIFF\r\n--cxmpute\r\n\r\nname=\"file\"";
        let form =
            compose(&request, "whisper-1", &[("language", "en".into()), ("prompt", "a\nb".into())], sound);
        let Parts { fields, file } = take_apart(&request, &form).unwrap();
        assert_eq!(fields, [("model", "whisper-1"), ("language", "en"), ("prompt", "a\nb")]);
        assert_eq!(file, sound);
        let renamed = with_model(&request, &form, "whisper-1", "base.en").unwrap();
        let parts = take_apart(&request, &renamed).unwrap();
        assert_eq!((parts.fields[0], parts.file), (("model", "base.en"), &sound[..]));
        assert!(with_model(&request, &form, "other", "x").is_none());
        assert!(take_apart(&RequestId::from_tail("abd"), &form).is_none());
        for end in 0..form.len() {
            assert!(take_apart(&request, &form[..end]).is_none(), "{end}");
        }
    }
}
