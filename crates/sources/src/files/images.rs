//! Images of disks: files that are written in place, block by block.
//!
//! They are cut into cells, as database files are, and not where their content says so: then a backup
//! stores the pages that changed since the one before, and not a megabyte around each.

use backstay_repo::Chunking;

use super::metadata::Stat;

/// Smaller ones are not worth the hashes of their pages. Bytes.
const WORTH: u64 = 1 << 20;
/// What every block device and every format of images is a multiple of. Bytes.
const SECTOR: u64 = 512;

/// How the names of images end, in small letters.
const ENDINGS: [&str; 7] = ["hdd", "img", "qcow2", "raw", "vdi", "vhdx", "vmdk"];

/// How the content of a file is cut. One with holes is not an image for this: cells do not tell holes
/// from zeros, and its holes are to come back where they were.
pub(super) fn chunking(path: &[u8], stat: &Stat) -> Chunking {
    let whole = stat.size >= WORTH && stat.size.is_multiple_of(SECTOR) && !stat.is_sparse();
    if whole && is_named_so(path) { Chunking::Grid } else { Chunking::ContentDefined }
}

fn is_named_so(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return false };
    let ending = name.get(dot + 1..).unwrap_or_default();
    ENDINGS.iter().any(|image| ending.eq_ignore_ascii_case(image.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_name_says_whether_it_is_an_image() {
        for name in ["disk.img", "srv/vm/a.b.QCOW2", ".img"] {
            assert!(is_named_so(name.as_bytes()), "{name}");
        }
        for name in ["img", "disk.img.gz", "vm.img/log", "disk.", "image"] {
            assert!(!is_named_so(name.as_bytes()), "{name}");
        }
    }
}
