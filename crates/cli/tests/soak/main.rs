//! Real servers, in an order that one seed decides: work of all kinds, backups of each type by each
//! way, killed ones, crashes, forgetting, maintenance, and returns to an earlier moment, from which the
//! cluster goes on. In between it is brought back to moments of which was recorded what each table had:
//! that record is all that the outcome is compared with.
//!
//! It is one and the same seed each time; `BACKSTAY_SEED=N` runs another, `BACKSTAY_SEEDS=N` so many new
//! ones. A failure prints its seed and what was
//! done. `make soakservers` runs a hundred.

// All of this is test code, helpers included.
#![allow(clippy::unwrap_used)]

mod lots;
mod work;
mod world;

use backstay_testing::{postgres, skip};
use lots::Lots;
use world::World;

/// What one seed does at most.
const STEPS: usize = 14;

#[test]
fn whatever_the_order_every_recorded_moment_comes_back() {
    let supported = |it: &postgres::Installation| (13..=18).contains(&it.major);
    let installations: Vec<_> = postgres::versions().into_iter().filter(supported).collect();
    if installations.is_empty() {
        skip!("no PostgreSQL of 13 to 18 is installed; run scripts/test-postgres");
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seeds: Vec<u64> = match (number("BACKSTAY_SEED"), number("BACKSTAY_SEEDS")) {
        (Some(seed), _) => vec![seed],
        // New orders each time.
        (None, Some(many)) => {
            let time = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
            (0..many).map(|n| time + n).collect()
        }
        (None, None) => vec![1],
    };
    for (done, seed) in seeds.iter().enumerate() {
        println!("seed {seed}, {done} done");
        let mut lots = Lots::new(*seed);
        let installation = lots.one(&installations).clone();
        let mut world = World::new(lots, installation);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..STEPS {
                world.step();
            }
            world.end();
        }));
        if let Err(panic) = lived {
            println!("BACKSTAY_SEED={seed} failed after:\n  {}", world.story().join("\n  "));
            if std::env::var_os("BACKSTAY_KEEP").is_some() {
                println!("kept in {}", world.keep().display());
            }
            std::panic::resume_unwind(panic);
        }
        println!("seed {seed}: {}", world.summary());
    }
}
