//! The manifest of a base backup: what the server says it has sent, compared with what came.
//!
//! One file stands on one line, so that it is read as it comes and never held as a whole; the last
//! line is the SHA-256 of all before it.

use std::collections::HashMap;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Deserialize;

/// The longest line that is believed: a path of 4096 bytes in hexadecimal, and the rest. Bytes.
const LINE: usize = 64 << 10;

/// Files that came: by a hash of their paths, their sizes and CRC-32C.
#[derive(Debug, Default)]
pub(crate) struct Came(HashMap<[u8; 16], (u64, u32)>);

fn key(path: &[u8]) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(blake3::hash(path).as_bytes().first_chunk::<16>().unwrap_or(&[0; 16]));
    key
}

impl Came {
    pub(crate) fn add(&mut self, path: &[u8], size: u64, crc: u32) {
        self.0.insert(key(path), (size, crc));
    }

    /// Takes a file of the manifest off the list.
    fn compare(&mut self, path: &[u8], size: u64, crc: Option<u32>) -> Result<(), String> {
        let name = String::from_utf8_lossy(path);
        let Some((came, sum)) = self.0.remove(&key(path)) else {
            return Err(format!("{name} is in its manifest and did not come"));
        };
        if came != size {
            return Err(format!("{name} came with {came} bytes instead of {size}"));
        }
        if crc.is_some_and(|crc| crc != sum) {
            return Err(format!("the checksum of {name} is not the one in its manifest"));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

/// A manifest on its way.
pub(crate) struct Manifest {
    line: Vec<u8>,
    sum: Context,
    /// What the last line says the sum is.
    said: Option<String>,
    files: u64,
}

impl Manifest {
    pub(crate) fn new() -> Self {
        Self { line: Vec::new(), sum: Context::new(&SHA256), said: None, files: 0 }
    }

    /// Takes the next bytes, and compares the files that are in them.
    pub(crate) fn push(&mut self, bytes: &[u8], came: &mut Came) -> Result<(), String> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > LINE {
                return Err("a line of its manifest is too long".to_owned());
            }
            if part.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                self.take(&line, came)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8], came: &mut Came) -> Result<(), String> {
        if self.said.is_some() {
            return Err("its manifest goes on behind its end".to_owned());
        }
        if let Some(rest) = line.strip_prefix(b"\"Manifest-Checksum\"") {
            let digits = rest.iter().filter(|byte| byte.is_ascii_hexdigit());
            self.said = Some(digits.map(|byte| char::from(byte.to_ascii_lowercase())).collect());
            return Ok(());
        }
        self.sum.update(line);
        let text = line.trim_ascii();
        let is_file =
            [&b"{ \"Path\""[..], b"{ \"Encoded-Path\""].iter().any(|s| text.starts_with(s));
        if !is_file {
            return Ok(());
        }
        let text = text.strip_suffix(b",").unwrap_or(text);
        let file: Line = serde_json::from_slice(text)
            .map_err(|error| format!("a line of its manifest cannot be read: {error}"))?;
        let path = match (file.path, file.encoded) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(hex)) => from_hex(&hex).ok_or("a path of its manifest cannot be read")?,
            _ => return Err("a file of its manifest has no path".to_owned()),
        };
        let crc = match (file.algorithm.as_deref(), file.checksum) {
            (Some("CRC32C"), Some(hex)) => {
                let bytes = from_hex(&hex).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
                // The bytes stand as they do in the memory of the server.
                let bytes = bytes.ok_or("a checksum of its manifest cannot be read")?;
                Some(u32::from_le_bytes(bytes))
            }
            _ => None,
        };
        self.files += 1;
        came.compare(&path, file.size, crc)
    }

    /// The manifest is over, and so is what it is about. How many files it has.
    pub(crate) fn finish(self, came: &Came) -> Result<u64, String> {
        let summed = self.sum.finish();
        let summed: String = summed.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if !self.line.is_empty() || self.said.is_none_or(|said| said != summed) {
            return Err("its manifest is not what its checksum says".to_owned());
        }
        match came.0.len() {
            0 => Ok(self.files),
            many => Err(format!("{many} files came that are not in its manifest")),
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let pair = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(pair).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(files: &str) -> String {
        let body =
            format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}],\n");
        let sum = aws_lc_rs::digest::digest(&SHA256, body.as_bytes());
        let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    fn file(path: &str, content: &[u8]) -> String {
        let crc: String =
            crc32c::crc32c(content).to_le_bytes().iter().map(|b| format!("{b:02x}")).collect();
        format!(
            "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"x\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}",
            content.len()
        )
    }

    fn read(text: &str, came: &[(&str, &[u8])]) -> Result<u64, String> {
        let mut list = Came::default();
        for (path, content) in came {
            list.add(path.as_bytes(), content.len() as u64, crc32c::crc32c(content));
        }
        let mut manifest = Manifest::new();
        for piece in text.as_bytes().chunks(7) {
            manifest.push(piece, &mut list)?;
        }
        manifest.finish(&list)
    }

    #[test]
    fn what_came_is_what_was_sent_or_it_is_said_what_is_not() {
        let whole = text(&format!("{},\n{}\n", file("a", b"one"), file("b/c", b"two")));
        assert_eq!(read(&whole, &[("a", b"one"), ("b/c", b"two")]), Ok(2));
        let wrong = |came: &[(&str, &[u8])]| read(&whole, came).unwrap_err();
        assert!(wrong(&[("a", b"one"), ("b/c", b"twO")]).contains("checksum of b/c"));
        assert!(wrong(&[("a", b"one"), ("b/c", b"more")]).contains("4 bytes instead of 3"));
        assert!(wrong(&[("a", b"one")]).contains("b/c is in its manifest"));
        assert!(wrong(&[("a", b"one"), ("b/c", b"two"), ("d", b"")]).contains("1 files came"));
    }

    #[test]
    fn a_manifest_that_was_altered_or_cut_is_refused() {
        let whole = text(&format!("{}\n", file("a", b"one")));
        let altered = whole.replace("Manifest-Version\": 1", "Manifest-Version\": 2");
        assert!(read(&altered, &[("a", b"one")]).is_err());
        assert!(read(&whole[..whole.len() - 1], &[("a", b"one")]).is_err());
        assert!(read(&whole.repeat(2), &[("a", b"one")]).is_err());
        assert!(read(&"x".repeat(100_000), &[]).is_err());
    }

    #[test]
    fn a_path_that_is_no_text_comes_in_hexadecimal() {
        let line = file("x", b"one").replace("\"Path\": \"x\"", "\"Encoded-Path\": \"ff41\"");
        let mut list = Came::default();
        list.add(b"\xffA", 3, crc32c::crc32c(b"one"));
        let mut manifest = Manifest::new();
        manifest.push(text(&format!("{line}\n")).as_bytes(), &mut list).unwrap();
        assert_eq!(manifest.finish(&list), Ok(1));
    }
}
