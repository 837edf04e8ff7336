//! What fuzz targets reach of this crate; no part of the API. Each function panics when something does
//! not hold.

use crate::local::{locked_until, share_in};
use crate::parity::{Head, is_torn, protect};

/// A parity file as it lies on a disk, and what a repair makes of it: bytes that nobody wrote, heads
/// that are sealed and say what they like, and an object and its parity that are damaged together.
pub fn parity(bytes: &[u8]) {
    look_at(bytes, &[]);
    if let Some((front, rest)) = bytes.split_first_chunk::<64>() {
        let sums = rest.len().min(512);
        let (sums, rest) = rest.split_at(sums / 16 * 16);
        let forged = Head::forge(front, sums, rest);
        look_at(&forged, rest);
    }
    // What to damage, and how, and the object.
    let Some((how, object)) = bytes.split_first_chunk::<16>() else { return };
    let share = how[0] % 100 + 1;
    let Some(mut file) = protect(object, share) else { return };
    let mut body = object.to_vec();
    let Some(whole) = Head::find(&file) else { panic!("what was just made is a parity file") };
    assert!(whole.is_whole(&file) && whole.agrees(object));
    for hole in how[1..].as_chunks::<5>().0 {
        let into = if hole[0].is_multiple_of(2) { &mut body } else { &mut file };
        let start = usize::from(u16::from_le_bytes([hole[1], hole[2]])).min(into.len());
        let end = (start + usize::from(hole[3]) * 16).min(into.len());
        match hole[0] % 8 {
            0 | 1 => into.truncate(start),
            _ => into[start..end].fill(hole[4]),
        }
    }
    if let Some(head) = Head::find(&file) {
        // Two right heads of one object never differ.
        assert!(head == whole);
        match head.rebuild(&body, &file) {
            Ok(rebuilt) => assert!(rebuilt == object),
            Err(beyond) => assert!(beyond.damaged > 0),
        }
    }
}

fn look_at(file: &[u8], body: &[u8]) {
    let torn = is_torn(file, file, file.len() as u64);
    let Some(head) = Head::find(file) else { return };
    assert!(!(head.is_whole(file) && torn));
    let _ = head.agrees(body);
    if let Ok(rebuilt) = head.rebuild(body, file) {
        assert!(*blake3::hash(&rebuilt).as_bytes() == head.digest);
    }
}

/// Valid ones.
pub fn parity_samples() -> Vec<Vec<u8>> {
    let object: Vec<u8> = (0..9000_u32).map(|n| ((n * n) >> 7) as u8).collect();
    let mut samples: Vec<Vec<u8>> =
        [&object[..], &object[..100], &[]].iter().filter_map(|part| protect(part, 30)).collect();
    let how = [50, 2, 0, 1, 90, 7, 3, 0, 4, 9, 7, 0, 9, 0, 0, 0];
    samples.push([&how, &object[..]].concat());
    samples
}

/// The attribute that keeps a file, and how much parity a directory asks for.
pub fn settings(bytes: &[u8]) {
    if let Some(until) = locked_until(bytes) {
        assert!(until >= std::time::SystemTime::UNIX_EPOCH);
    }
    if let Some(share) = std::str::from_utf8(bytes).ok().and_then(share_in) {
        assert!((1..=100).contains(&share));
    }
}
