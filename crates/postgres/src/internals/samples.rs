//! Valid bytes of each kind, made as servers make them.

#![allow(clippy::indexing_slicing, reason = "the sizes of samples are known")]

use aws_lc_rs::digest;

use super::{Changes, ControlFile, Lsn, Record, Summary};

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(super) fn connections() -> Vec<Vec<u8>> {
    texts(&[
        r"host=db1,db2 port = 5433,5432 user='the \'owner\'' password=a\ b dbname=x",
        "postgresql://me%20:p%40ss@db1:5433,[::1]:99,db3/x?sslmode=verify-full&options=-c%20a%3Db",
        "hostaddr=10.0.0.1 channel_binding=require connect_timeout=7 target_session_attrs=primary",
        "# all\n[other]\nhost=x\n\n[main]\nhost=db\nport=6000\nsslmode=require\n",
        "# note\ndb\\:1:5432:*:me:se\\:cr\\\\et\n*:*:*:*:last\n",
    ])
}

pub(super) fn controls() -> Vec<Vec<u8>> {
    [(1300_u32, 288), (1700, 288), (1800, 292)]
        .map(|(version, crc_at)| {
            let mut bytes = vec![0; 512];
            for (at, value) in [
                (0, 7_123_456_789),
                (8, u64::from(version) | 202_209_061 << 32),
                (16, 6),
                (24, 1_700_000_000),
                (32, 0x0300_0028),
                (40, 0x0300_0028),
                (48, 3),
                (172, 1 | 100 << 32),
                (216, 8192 | 131_072 << 32),
                (224, 8192 | 16_777_216 << 32),
                (252, 1),
            ] {
                bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            }
            let sum = crc32c::crc32c(&bytes[..crc_at]);
            bytes[crc_at..crc_at + 4].copy_from_slice(&sum.to_le_bytes());
            assert!(ControlFile::parse(&bytes, "a sample").is_ok());
            bytes
        })
        .to_vec()
}

pub(super) fn errors() -> Vec<Vec<u8>> {
    texts(&[
        "SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for host \"::1\"\0Fauth.c\0L456\0\0",
        "SERROR\0C42704\0Mslot does not exist\0Dwhy\0Hcreate it\0P12\0\0",
        "SNOTICE\0C00000\0M\0\0",
    ])
}

pub(super) fn histories() -> Vec<Vec<u8>> {
    texts(&[
        "\x031\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-01\n",
        "\x031\t0/6000000\tone\n2\t0/4000000\tback\n",
        "\x02# a comment\n1 16/B374D848 at restore point \"x\"\n",
        "\x01",
    ])
}

pub(super) fn labels() -> Vec<Vec<u8>> {
    texts(&[
        "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
         CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
         START TIME: 2026-11-25 10:00:00 UTC\nLABEL: backstay main\nSTART TIMELINE: 1\n",
        "BACKUP FROM: standby\nSTART TIMELINE: 4294967295\n 00000002.history \
         000000010000000000000003.partial 000000010000000000000003.00000028.backup\n",
    ])
}

/// A byte that says how long the first part is, then what a server says first and last.
pub(super) fn challenges() -> Vec<Vec<u8>> {
    let (first, last) = (
        "r=RNONCEfghij,s=QSXCR+Q6sek8bf92,i=4096",
        "v=6rriTRBi23WpRZ/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    );
    let mut whole = vec![first.len() as u8];
    whole.extend_from_slice(first.as_bytes());
    whole.extend_from_slice(last.as_bytes());
    vec![whole, b"\x14r=R,s=QSXC,i=1000000e=other-error".to_vec()]
}

/// A manifest of what stands before its sum.
pub(super) fn manifest_of(body: &[u8]) -> Vec<u8> {
    let sum = digest::digest(&digest::SHA256, body);
    let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut whole = body.to_vec();
    whole.extend_from_slice(format!("\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes());
    whole
}

pub(super) fn manifests() -> Vec<Vec<u8>> {
    let crc = crc32c::crc32c(b"one").to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
    let file = |path: &str| {
        format!(
            "{{ {path}, \"Size\": 3, \"Last-Modified\": \"2026-11-25 10:00:00 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}"
        )
    };
    ["\"Path\": \"base/1\"", "\"Encoded-Path\": \"626173652f31\""]
        .map(|path| {
            let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n";
            let ranges = "\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/28\", \
                          \"End-LSN\": \"0/100\" }\n],\n";
            let body = format!("{head}\"Files\": [\n{}\n],\n{ranges}", file(path));
            manifest_of(body.as_bytes())
        })
        .to_vec()
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

pub(super) fn messages() -> Vec<Vec<u8>> {
    let login = [
        framed(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        framed(b'R', b"\0\0\0\x0br=abc,s=QSXC,i=4096"),
        framed(b'R', &[0; 4]),
        framed(b'S', b"server_version\x0015.4\0"),
        framed(b'K', &[1; 8]),
        framed(b'Z', b"I"),
    ];
    let answer = [
        framed(b'T', b"\0\x01systemid\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"),
        framed(b'D', b"\0\x02\0\0\0\x037xy\xff\xff\xff\xff"),
        framed(b'C', b"SELECT 1\0"),
        framed(b'N', b"SNOTICE\0Mhello\0\0"),
        framed(b'W', b"\0\0\0"),
        framed(b'd', &[b'w'; 40]),
        framed(b'c', b""),
    ];
    vec![login.concat(), answer.concat()]
}

pub(super) fn pages() -> Vec<Vec<u8>> {
    let page = |special: usize, last: u16, pointers: &[u32]| {
        let mut page = vec![0; 8192];
        let mut put = |at: usize, value: usize| {
            page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        };
        put(4, 77);
        put(12, 24 + pointers.len() * 4);
        put(14, 7000);
        put(16, 8192 - special);
        put(18, 8196);
        if special > 0 {
            put(8190, usize::from(last));
        }
        for (at, pointer) in pointers.iter().enumerate() {
            page[24 + at * 4..28 + at * 4].copy_from_slice(&pointer.to_le_bytes());
        }
        page
    };
    let tuples = [7000 | 1 << 15 | 40 << 17, 7040 | 1 << 15 | 61 << 17, 2 << 15];
    [(0, 0), (8, 0xf093), (8, 0xff82), (8, 3), (16, 0), (16, 0xff80), (16, 0xff81)]
        .map(|(special, last)| page(special, last, &tuples).repeat(2))
        .to_vec()
}

/// What follows a record's header, of a record that has only words of its own.
fn main_data(data: &[u8]) -> Vec<u8> {
    match u8::try_from(data.len()) {
        Ok(length) => [&[255, length], data].concat(),
        Err(_) => [&[254], &(data.len() as u32).to_le_bytes()[..], data].concat(),
    }
}

fn numbers(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Resource manager, kind, and what follows the header.
pub(super) fn bodies() -> Vec<(u8, u8, Vec<u8>)> {
    let commit = |xinfo: u32, lists: &[u32]| {
        let mut data = 700_000_000_000_000_u64.to_le_bytes().to_vec();
        data.extend(numbers(&[xinfo]));
        data.extend(numbers(lists));
        main_data(&data)
    };
    // A block with an image that has a hole, the same relation again, and words of its own.
    let mut blocks = vec![0, 0x30, 3, 0, 5, 0, 24, 0, 1];
    blocks.extend(numbers(&[1663, 5, 16_384, 7]));
    blocks.extend([1, 0xa2, 2, 0]);
    blocks.extend(numbers(&[9]));
    blocks.extend([255, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    vec![
        (10, 0x00, blocks),
        // Storage: a fork is made (also one that no server has), a relation is cut.
        (2, 0x10, main_data(&numbers(&[1663, 5, 16_384, 0]))),
        (2, 0x10, main_data(&numbers(&[1663, 5, 16_384, 9]))),
        (2, 0x20, main_data(&numbers(&[7, 1663, 5, 16_384, 7]))),
        // Transactions: a database, those below it, relations, a prepared one.
        (1, 0x80, commit(0x07, &[5, 1663, 1, 701, 1, 1663, 5, 16_384])),
        (1, 0xb0, commit(0x14, &[1, 1663, 5, 16_385, 702])),
        (1, 0x00, main_data(&700_000_000_000_000_u64.to_le_bytes())),
        (4, 0x00, main_data(&numbers(&[5, 1663, 1, 1663]))),
        (4, 0x20, main_data(&numbers(&[5, 2, 1663, 16_390]))),
        (5, 0x00, main_data(&[&numbers(&[16_390])[..], b"/srv/space\0"].concat())),
        // Checkpoints, a named point, the end of a recovery, a switch.
        (0, 0x10, main_data(&[1; 96])),
        (0, 0x70, main_data(&[&[1; 8], &b"before".repeat(10)[..], &[0; 4]].concat())),
        (0, 0x90, main_data(&[1; 20])),
        (7, 0x00, main_data(&[3; 524])),
        (0, 0x40, main_data(&[])),
    ]
}

pub(super) fn records() -> Vec<Vec<u8>> {
    let versions = (0..6_u8).flat_map(|version| {
        bodies()
            .into_iter()
            .map(move |(manager, info, body)| [&[manager, info, version], &body[..]].concat())
    });
    versions.collect()
}

pub(super) fn summaries() -> Vec<Vec<u8>> {
    let mut changes = Changes::new();
    for (manager, info, body) in bodies() {
        let record = Record {
            lsn: Lsn(0x28),
            end: Lsn(0x100),
            previous: Lsn(0),
            xid: 700,
            manager,
            info,
            length: body.len() as u32 + 24,
            version: 15,
            body: &body,
        };
        let _ = changes.add(&record);
    }
    let (from, to) = (Lsn(0x28), Lsn(0x3000));
    let full = Summary { system_identifier: 7, timeline: 1, from, to, changes };
    let empty = Summary { changes: Changes::new(), ..full.clone() };
    vec![full.encode(), empty.encode()]
}

/// The sum that belongs to a header of tar.
pub(super) fn sum_of_header(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    // A block of zeros ends an archive, and has none.
    if sum == 8 * u64::from(b' ') {
        block[148..156].fill(0);
    } else {
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

pub(super) fn archives() -> Vec<Vec<u8>> {
    let header = |name: &str, type_: u8, size: u64, target: &str| {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000600 ");
        put(108, b"0000151 ");
        put(116, b"0000151 ");
        put(124, format!("{size:011o} ").as_bytes());
        put(136, b"14500000000 ");
        put(156, &[type_]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000postgres");
        put(297, b"postgres");
        sum_of_header(&mut block);
        block.to_vec()
    };
    let mut whole = header("./base/", b'5', 0, "");
    whole.extend(header("base/1259", b'0', 700, ""));
    whole.extend([7; 700]);
    whole.extend([0; 324]);
    whole.extend(header("pg_tblspc/16390", b'2', 0, "/srv/space"));
    let mut ended = header("global/pg_control", b'0', 3, "");
    ended.extend([b"one".as_slice(), &[0; 509 + 1024]].concat());
    vec![whole, ended]
}

pub(super) fn contents() -> Vec<Vec<u8>> {
    let number = |value: i32| {
        let mut bytes = vec![u8::from(value < 0)];
        bytes.extend_from_slice(&value.unsigned_abs().to_le_bytes());
        bytes
    };
    let text = |value: &str| [&number(value.len() as i32)[..], value.as_bytes()].concat();
    [12_u8, 14, 15, 16]
        .map(|minor| {
            let mut all = b"PGDMP\x01".to_vec();
            all.extend([minor, 0, 4, 8, 3]);
            all.extend(if minor >= 15 { vec![0] } else { number(0) });
            (0..7).for_each(|_| all.extend(number(1)));
            ["shop", "15.14", "15.14"].iter().for_each(|part| all.extend(text(part)));
            all.extend(number(1));
            all.extend([number(3305), number(1)].concat());
            ["0", "16385", "orders", "TABLE DATA"].iter().for_each(|one| all.extend(text(one)));
            all.extend(number(3));
            for part in ["", "", "COPY public.orders (id) FROM stdin;\n", "public", ""] {
                all.extend(text(part));
            }
            if minor >= 14 {
                all.extend(text(""));
            }
            if minor >= 16 {
                all.extend(number(0));
            }
            ["postgres", "false", "215"].iter().for_each(|part| all.extend(text(part)));
            all.extend([number(-1), text("3305.dat")].concat());
            all
        })
        .to_vec()
}

/// The first page of a segment as a server of some version begins it.
fn first_page(magic: u16) -> Vec<u8> {
    let mut page = vec![0; 40];
    page[0..2].copy_from_slice(&magic.to_le_bytes());
    page[2..4].copy_from_slice(&2_u16.to_le_bytes());
    page[4..8].copy_from_slice(&1_u32.to_le_bytes());
    page[8..16].copy_from_slice(&(3_u64 << 20).to_le_bytes());
    page[24..32].copy_from_slice(&1_u64.to_le_bytes());
    page[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    page[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    page
}

pub(super) fn segments() -> Vec<Vec<u8>> {
    [0xD106_u16, 0xD110, 0xD118]
        .map(|magic| {
            let mut segment = first_page(magic);
            for (manager, info, body) in bodies() {
                let mut record = (body.len() as u32 + 24).to_le_bytes().to_vec();
                record.extend([0; 12]);
                record.extend([info, manager, 0, 0, 0, 0, 0, 0]);
                record.extend(&body);
                record.resize(record.len().next_multiple_of(8), 0);
                segment.extend(record);
            }
            mended_segment(&segment)
        })
        .to_vec()
}

/// The same with a header that belongs there, and records that follow one another and have their sums.
pub(super) fn mended_segment(bytes: &[u8]) -> Vec<u8> {
    let magic = bytes.first_chunk::<2>().map_or(0, |magic| u16::from_le_bytes(*magic));
    let known = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118].contains(&magic);
    let mut all = first_page(if known { magic } else { 0xD110 });
    all.extend_from_slice(bytes.get(40..).unwrap_or_default());
    let (mut at, mut previous) = (40, 3_u64 << 20);
    while let Some(length) = all.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let length = u32::from_le_bytes(*length) as usize;
        // What goes on in the next page is left as it is.
        let end = at.saturating_add(length);
        if length < 24 || end > 8192 {
            break;
        }
        let Some(record) = all.get_mut(at..end) else { break };
        record[8..16].copy_from_slice(&previous.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
        record[20..24].copy_from_slice(&sum.to_le_bytes());
        previous = (3 << 20) + at as u64;
        at = end.next_multiple_of(8);
    }
    all
}
