//! Page checksums: the best code for this processor against the portable one.
//! `cargo bench -p backstay-postgres --bench page`

use std::hint::black_box;

use backstay_postgres::page::internals;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn page(c: &mut Criterion) {
    let cell: Vec<u8> =
        (0..128 * 8192_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut group = c.benchmark_group("checksums of 1 MiB");
    group.throughput(Throughput::Bytes(cell.len() as u64));
    for (name, hash) in
        [("portable", internals::portable as fn(&[u8]) -> u32), ("best", internals::best)]
    {
        group.bench_function(name, |b| {
            b.iter(|| black_box(&cell).chunks_exact(8192).fold(0, |all, page| all ^ hash(page)));
        });
    }
    group.finish();
}

criterion_group!(benches, page);
criterion_main!(benches);
