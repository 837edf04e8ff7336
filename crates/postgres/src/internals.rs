//! What fuzz targets reach of this crate; no part of the API. One function for each parser of bytes
//! that a server sends, that lie in its files, or in its archive: fuzzing drives them for hours, and the
//! test `mutations` for a fixed number of altered samples. Each panics when something does not hold.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use crate::connection::{Parameters, find_password, service};
use crate::control::ControlFile;
use crate::logical::toc::Toc;
use crate::page;
use crate::stream::manifest::{Came, Manifest};
use crate::stream::tar::{Part, Tar};
use crate::wal::reader::{Identity, Reader, Segment};
use crate::wal::{
    Changes, History, Lsn, Record, SegmentHeader, SegmentName, SegmentSize, Summary, WalName, dump,
    page as wal_page,
};
use crate::wire::{Message, login, message};

mod samples;

/// A parser and what it is given.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Valid ones.
    pub samples: fn() -> Vec<Vec<u8>>,
}

pub const ALL: &[Target] = &[
    Target { name: "pg_connection", run: pg_connection, samples: samples::connections },
    Target { name: "pg_control", run: pg_control, samples: samples::controls },
    Target { name: "pg_errors", run: pg_errors, samples: samples::errors },
    Target { name: "pg_history", run: pg_history, samples: samples::histories },
    Target { name: "pg_label", run: pg_label, samples: samples::labels },
    Target { name: "pg_login", run: pg_login, samples: samples::challenges },
    Target { name: "pg_manifest", run: pg_manifest, samples: samples::manifests },
    Target { name: "pg_messages", run: pg_messages, samples: samples::messages },
    Target { name: "pg_pages", run: pg_pages, samples: samples::pages },
    Target { name: "pg_records", run: pg_records, samples: samples::records },
    Target { name: "pg_summary", run: pg_summary, samples: samples::summaries },
    Target { name: "pg_tar", run: pg_tar, samples: samples::archives },
    Target { name: "pg_toc", run: pg_toc, samples: samples::contents },
    Target { name: "pg_wal", run: pg_wal, samples: samples::segments },
];

/// What people write to reach a server: connection strings, service files, password files.
pub fn pg_connection(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(it) = Parameters::with_environment(&text, |_| None) {
        let _ = (it.endpoints(), it.wanted(), it.channel_binding(), it.connect_timeout());
        let _ = (it.place(), it.for_libpq(), it.environment(), format!("{it:?}"));
    }
    let _ = service::find(&text, "main");
    let _ = find_password(&text, |fields| fields[0] == "db" || fields[0] == "*");
}

/// `pg_control`, as it is and with the checksum that belongs to it.
pub fn pg_control(bytes: &[u8]) {
    let look = |bytes: &[u8]| {
        if let Ok(control) = ControlFile::parse(bytes, "pg_control") {
            let _ = ControlFile::limits(bytes);
            assert!(SegmentSize::new(u64::from(control.wal_segment_size)).is_some());
            let mut copy = bytes.to_vec();
            assert!(crate::control::invalidate_checkpoint(&mut copy, "pg_control").is_ok());
        }
    };
    look(bytes);
    for crc_at in [288, 292] {
        let mut mended = bytes.to_vec();
        let sum = crc32c::crc32c(bytes.get(..crc_at).unwrap_or_default()).to_le_bytes();
        if let Some(place) = mended.get_mut(crc_at..crc_at + 4) {
            place.copy_from_slice(&sum);
            look(&mended);
        }
    }
}

/// The fields of an error or a notice.
pub fn pg_errors(bytes: &[u8]) {
    for tag in [b'E', b'N'] {
        if let Ok(Message::Error(said) | Message::Notice(said)) =
            message::read(tag, Bytes::copy_from_slice(bytes))
        {
            assert!(said.sentence().len() + said.code.len() <= bytes.len() * 3 + 8);
        }
    }
}

/// The history of a timeline, whose number is the first byte.
pub fn pg_history(bytes: &[u8]) {
    let Some((timeline, content)) = bytes.split_first() else { return };
    let Ok(history) = History::parse(u32::from(*timeline), content) else { return };
    let ends: Vec<Lsn> = history.ancestors().iter().map(|one| one.end).collect();
    assert!(ends.is_sorted(), "{ends:?}");
    for end in ends {
        assert!(history.timeline_at(end) <= history.timeline());
        assert!(history.contains(history.timeline_at(end), end));
        let number = end.segment(SegmentSize::MIN);
        assert!(!history.timelines_of(number, SegmentSize::MIN).is_empty());
    }
}

/// A `backup_label`, and the names and places that are in such texts.
pub fn pg_label(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = crate::backup::timeline_of(&text);
    for word in text.split(|c: char| c.is_whitespace() || c == '(' || c == ')') {
        if let Ok(lsn) = word.parse::<Lsn>() {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
        if let Ok(name) = word.parse::<SegmentName>() {
            assert_eq!(name.to_string(), word);
            let _ = name.next(SegmentSize::MIN).and_then(|next| next.start(SegmentSize::MIN));
        }
        if let Ok(name) = word.parse::<WalName>() {
            assert_eq!(name.to_string(), word);
        }
    }
}

/// What a server says in a login by SCRAM, as it is and as an answer to what it was told.
pub fn pg_login(bytes: &[u8]) {
    let Some((at, rest)) = bytes.split_first() else { return };
    let (first, last) = rest.split_at(usize::from(*at).min(rest.len()));
    let mut proof = ScramSha256::new(b"secret", ChannelBinding::unsupported());
    let hello = proof.message().to_vec();
    let nonce = hello.split(|byte| *byte == b'r').next_back().unwrap_or_default();
    // Only an answer to what was said is read on.
    let nonce = nonce.strip_prefix(b"=").unwrap_or_default();
    let answer = match first.strip_prefix(b"r=R") {
        Some(rest) => [b"r=", nonce, rest].concat(),
        None => first.to_vec(),
    };
    // More would be believed, and takes its time.
    if login::rounds(&answer).is_some_and(|rounds| rounds <= 4096) && proof.update(&answer).is_ok()
    {
        let _ = proof.finish(last);
    }
}

/// The manifest of a base backup, as it is and with the checksum that belongs to it.
pub fn pg_manifest(bytes: &[u8]) {
    const END: &[u8] = b"\"Manifest-Checksum\"";
    let look = |bytes: &[u8]| {
        let mut came = Came::default();
        came.add(b"base/1", 3, crc32c::crc32c(b"one"));
        let mut manifest = Manifest::new();
        let piece = bytes.first().map_or(1, |first| usize::from(*first) + 1);
        for piece in bytes.chunks(piece) {
            if manifest.push(piece, &mut came).is_err() {
                return;
            }
        }
        let _ = manifest.finish(&came);
    };
    look(bytes);
    let end = bytes.windows(END.len()).position(|window| window == END);
    if let Some((body, _)) = end.and_then(|end| bytes.split_at_checked(end)) {
        look(&samples::manifest_of(body));
    }
}

/// Messages of a server, in a row.
pub fn pg_messages(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some((tag, body))) = message::split(&mut buffer) {
        match message::read(tag, body) {
            Ok(Message::Row(row)) => {
                let _ = (0..4).filter_map(|at| row.text(at)).count();
            }
            Ok(Message::Authentication(_, mut rest)) => {
                while message::string(&mut rest).is_some() {}
            }
            _ => {}
        }
    }
}

/// Pages of relations: two of them, one behind the other.
pub fn pg_pages(bytes: &[u8]) {
    let (mut one, mut other) = (bytes.to_vec(), bytes.get(8192..).unwrap_or_default().to_vec());
    one.resize(8192, 0);
    other.resize(8192, 0);
    let _ = (page::check(&one, 3), page::lsn(&one));
    assert!(page::same_but_for_hints(&one, &one));
    let same = page::same_but_for_hints(&one, &other);
    assert_eq!(same, page::same_but_for_hints(&other, &one));
    assert!(!same || page::lsn(&one) == page::lsn(&other));
}

/// One record: its resource manager, its kind, a version, and what follows its header.
pub fn pg_records(bytes: &[u8]) {
    let Some(([manager, info, version], body)) = bytes.split_first_chunk::<3>() else { return };
    look_at(&Record {
        lsn: Lsn(0x0300_0028),
        end: Lsn(0x0300_0028 + body.len() as u64 + 24),
        previous: Lsn(0x0300_0000),
        xid: 700,
        manager: *manager,
        info: *info,
        length: body.len() as u32 + 24,
        version: 13 + u32::from(*version) % 6,
        body,
    });
}

fn look_at(record: &Record<'_>) {
    let _ = (record.event(), record.transaction_end(), record.main_data());
    let _ = (record.origin_and_top_level(), record.blocks(), record.effect());
    let _ = (dump::line(record), dump::meaning(record));
    let mut changes = Changes::new();
    if changes.add(record).is_err() {
        return;
    }
    let summary = Summary {
        system_identifier: 1,
        timeline: 1,
        from: record.lsn,
        to: record.end.max(record.lsn),
        changes,
    };
    // What can be concluded from a record can be kept.
    assert_eq!(Summary::decode(&summary.encode()).as_ref(), Ok(&summary));
}

/// What blocks a range of WAL changed, as it is kept.
pub fn pg_summary(bytes: &[u8]) {
    let look = |bytes: &[u8]| {
        if let Ok(summary) = Summary::decode(bytes) {
            assert_eq!(Summary::decode(&summary.encode()).as_ref(), Ok(&summary));
        }
    };
    look(bytes);
    let mut mended = bytes.to_vec();
    if let Some((rest, sum)) = mended.split_last_chunk_mut::<4>() {
        *sum = crc32c::crc32c(rest).to_le_bytes();
        look(&mended);
    }
}

/// Archives of a base backup, as they are and with the checksums that belong to their headers.
pub fn pg_tar(bytes: &[u8]) {
    let look = |bytes: &[u8]| {
        let (mut tar, mut content) = (Tar::new(), 0);
        let piece = bytes.first().map_or(1, |first| usize::from(*first) * 3 + 1);
        for piece in bytes.chunks(piece) {
            let taken = tar.push(piece, |part| {
                match part {
                    Part::Entry(header) => {
                        let up = |part: &[u8]| part.is_empty() || part == b".." || part == b".";
                        let bad = header.path.split(|byte| *byte == b'/').any(up);
                        assert!(!bad || header.path.is_empty(), "{:?}", header.path);
                    }
                    Part::Content(part) => content += part.len(),
                    Part::Over => {}
                }
                Ok::<(), String>(())
            });
            if taken.is_err() {
                return;
            }
        }
        assert!(content <= bytes.len());
        let _ = tar.finish();
    };
    look(bytes);
    let mut mended = bytes.to_vec();
    mended.as_chunks_mut::<512>().0.iter_mut().for_each(samples::sum_of_header);
    look(&mended);
}

/// The table of contents of a dump.
pub fn pg_toc(bytes: &[u8]) {
    if let Ok(toc) = Toc::parse(bytes) {
        assert!(toc.entries.len() <= bytes.len());
        let _ = toc.data_of("public", "orders");
    }
}

/// The beginning of a segment of WAL, as it is and with the checksums that belong to its records.
pub fn pg_wal(bytes: &[u8]) {
    let _ = (wal_page::PageHeader::parse(bytes), SegmentHeader::parse(bytes));
    if let Some(name) = SegmentName::new(1, 3, SegmentSize::MIN) {
        let size = SegmentSize::MIN.bytes();
        let _ = wal_page::check_segment_head(name, bytes, size, Some(1));
    }
    let _ = read_records(bytes.to_vec());
    let _ = read_records(samples::mended_segment(bytes));
}

/// How many records there are.
fn read_records(mut content: Vec<u8>) -> usize {
    content.resize(SegmentSize::MIN.bytes() as usize, 0);
    let content = Arc::new(content);
    let identity = Identity { system_identifier: None, segment_size: SegmentSize::MIN };
    // What follows is there as well and the same, which cannot be right.
    let source = |number: u64| {
        Ok((3..5).contains(&number).then(|| Segment { timeline: 1, content: content.clone() }))
    };
    let mut reader = Reader::new(identity, Lsn(3 << 20), source);
    let (mut last, mut count) = (Lsn(0), 0);
    while let Ok(Some(record)) = reader.next_record() {
        assert!(record.lsn >= last && record.end > record.lsn);
        last = record.end;
        count += 1;
        look_at(&record);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_what_they_are_to_be() {
        for sample in samples::segments() {
            assert_eq!(read_records(sample), samples::bodies().len());
        }
        let mut understood = 0;
        for sample in samples::records() {
            let (head, body) = sample.split_first_chunk::<3>().unwrap();
            let [manager, info, version] = *head;
            let (lsn, end, previous) = (Lsn(8), Lsn(16), Lsn(0));
            let version = 13 + u32::from(version);
            let (xid, length) = (1, 24 + body.len() as u32);
            let record = Record { lsn, end, previous, xid, manager, info, length, version, body };
            understood += usize::from(Changes::new().add(&record).is_ok());
            assert!(record.blocks().is_some(), "{sample:02x?}");
        }
        // Some are of kinds that not every version has.
        assert!(understood * 4 > samples::records().len() * 3, "{understood}");
        for sample in samples::manifests() {
            let mut came = Came::default();
            came.add(b"base/1", 3, crc32c::crc32c(b"one"));
            let mut manifest = Manifest::new();
            manifest.push(&sample, &mut came).unwrap();
            assert_eq!(manifest.finish(&came), Ok(1));
        }
        for sample in samples::archives() {
            let mut tar = Tar::new();
            tar.push(&sample, |_| Ok::<(), String>(())).unwrap();
            tar.finish().unwrap();
        }
        samples::contents().iter().for_each(|sample| drop(Toc::parse(sample).unwrap()));
        samples::summaries().iter().for_each(|sample| drop(Summary::decode(sample).unwrap()));
        for sample in samples::histories() {
            History::parse(sample[0].into(), &sample[1..]).unwrap();
        }
        for sample in samples::messages() {
            let mut buffer = BytesMut::from(&sample[..]);
            while let Some((tag, body)) = message::split(&mut buffer).unwrap() {
                message::read(tag, body).unwrap();
            }
            assert!(buffer.is_empty());
        }
    }
}
