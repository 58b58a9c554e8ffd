//! Messages on a stream: a header that says how long, and that much JSON.

use std::io::{BufRead, Error, ErrorKind, Read, Result, Write};

use serde_json::Value as Json;

/// Longer than any message of an editor; a wrong header must not make us allocate without end.
const LONGEST: u64 = 64 << 20;
const LONGEST_HEADER: u64 = 4096;

/// The body of the next message; None at the end of the stream.
pub(super) fn read(input: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let wrong = |what: &str| Error::new(ErrorKind::InvalidData, what);
    let mut length = None;
    loop {
        let mut line = String::new();
        if input.by_ref().take(LONGEST_HEADER).read_line(&mut line)? == 0 {
            return match length {
                None => Ok(None),
                Some(_) => Err(wrong("the stream ended within a header")),
            };
        }
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            // An empty line before any header is a slip that costs nothing.
            if length.is_some() { break } else { continue }
        }
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("a header line has no colon"))?;
        if name.eq_ignore_ascii_case("content-length") {
            let value = value.trim().parse().ok().filter(|length| *length <= LONGEST);
            length = Some(value.ok_or_else(|| wrong("the content's length is no number within bounds"))?);
        }
    }
    let length = length.unwrap_or_default();
    let mut body = Vec::new();
    if input.take(length).read_to_end(&mut body)? as u64 != length {
        return Err(wrong("the stream ended within a message"));
    }
    Ok(Some(body))
}

pub(super) fn write(output: &mut impl Write, message: &Json) -> Result<()> {
    let body = message.to_string();
    write!(output, "Content-Length: {}\r\n\r\n{body}", body.len())?;
    output.flush()
}
