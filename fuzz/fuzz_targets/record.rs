//! Compressed records, as they lie inside the seal; and what is compressed comes back.
#![no_main]

use backstay_repo::Compression;
use backstay_repo::internals::{self, Codec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|plain: &[u8]| {
    if let Some(content) = internals::record(plain) {
        assert!(content.len() <= 8 << 20);
    }
    for compression in [Compression::Zstd(3), Compression::Lz4, Compression::None] {
        let mut record = Vec::new();
        Codec::new(compression).encode(plain, &mut record);
        assert_eq!(internals::record(&record).as_deref(), Some(plain));
    }
});
