//! What the engine does to each byte: `cargo bench -p backstay-repo`.

use backstay_repo::internals::{CellHasher, Chunker, Codec, SessionKey};
use backstay_repo::{Compression, Environment};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const MIB: usize = 1 << 20;

fn noise(length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    Environment::seeded(1).random.fill(&mut data);
    data
}

fn rows(length: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(length + 64);
    let mut state = 1_u64;
    while data.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        data.extend_from_slice(&(data.len() as u32).to_le_bytes());
        data.extend_from_slice(&(state >> 40).to_le_bytes());
        data.extend_from_slice(&[b' '; 40]);
    }
    data.truncate(length);
    data
}

fn chunker(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunker");
    let data = noise(16 * MIB);
    group.throughput(Throughput::Bytes(data.len() as u64));
    let chunker = Chunker::new(&[1; 32]);
    group.bench_function("16 MiB of noise", |b| {
        b.iter(|| {
            let mut rest = black_box(&data[..]);
            while !rest.is_empty() {
                rest = &rest[chunker.cut(rest)..];
            }
        });
    });
}

fn cells(c: &mut Criterion) {
    let mut group = c.benchmark_group("cell");
    let cell = noise(MIB);
    group.throughput(Throughput::Bytes(MIB as u64));
    let hasher = CellHasher::new([1; 32], [2; 32]);
    let mut pages = Vec::new();
    group.bench_function("id and page hashes", |b| {
        b.iter(|| {
            pages.clear();
            hasher.hash(black_box(&cell), &mut pages)
        });
    });
    group.bench_function("id alone", |b| b.iter(|| blake3::keyed_hash(&[1; 32], black_box(&cell))));
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Bytes(MIB as u64));
    let key = SessionKey::for_benchmarks();
    let id = [3; 32];
    let mut record = noise(MIB);
    group.bench_function("seal", |b| b.iter(|| key.seal(1, 160, &id, black_box(&mut record))));
    let mut sealed = noise(MIB);
    let tag = key.seal(1, 160, &id, &mut sealed);
    sealed.extend_from_slice(&tag);
    group.bench_function("open", |b| {
        b.iter_batched_ref(
            || sealed.clone(),
            |sealed| key.open(1, 160, &id, sealed).is_some(),
            criterion::BatchSize::LargeInput,
        );
    });
    for (name, content) in [("rows", rows(MIB)), ("noise", noise(MIB))] {
        for compression in [Compression::Zstd(3), Compression::Lz4] {
            let mut codec = Codec::new(compression);
            let mut record = Vec::new();
            group.bench_function(format!("encode {name} {compression}"), |b| {
                b.iter(|| {
                    record.clear();
                    codec.encode(black_box(&content), &mut record);
                });
            });
            let mut out = Vec::new();
            group.bench_function(format!("decode {name} {compression}"), |b| {
                b.iter(|| codec.decode(black_box(&record), &mut out));
            });
        }
    }
}

criterion_group!(benches, chunker, cells, records);
criterion_main!(benches);
