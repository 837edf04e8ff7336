//! A secret shared among several holders (Shamir, 1979): any `threshold` of the shares give it back,
//! fewer tell nothing of it.
//!
//! Each byte of the secret is the constant term of a polynomial over GF(2^8) whose other
//! coefficients are random; share `x` is its value at `x`, for `x` from 1. The field is that of AES
//! (x^8 + x^4 + x^3 + x + 1). Multiplication takes the same steps for all operands and looks nothing
//! up, so neither time nor cache tells of them. Written here because the crates there
//! leak (`sharks` draws a leading coefficient that is never zero) or multiply by tables (`blahaj`).

use backstay_store::Environment;
use zeroize::Zeroizing;

/// The length of what is shared. Bytes.
pub(crate) const LENGTH: usize = 32;

/// A point of the polynomials: which one, and their values there.
#[derive(Clone)]
pub(crate) struct Point {
    pub x: u8,
    pub y: Zeroizing<[u8; LENGTH]>,
}

fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    for _ in 0..8 {
        product ^= a & (b & 1).wrapping_neg();
        let carry = (a >> 7).wrapping_neg();
        a = (a << 1) ^ (carry & 0x1b);
        b >>= 1;
    }
    product
}

/// The inverse: a^254. That of 0 is 0.
fn invert(a: u8) -> u8 {
    let mut power = a;
    let mut result = 1;
    for _ in 0..7 {
        power = multiply(power, power);
        result = multiply(result, power);
    }
    result
}

/// Points 1 to `shares`, of which any `threshold` give `secret` back. The caller has checked that
/// both are at least 1 and that there are no fewer shares than the threshold.
pub(crate) fn split(
    secret: &[u8; LENGTH],
    threshold: u8,
    shares: u8,
    env: &Environment,
) -> Vec<Point> {
    let coefficients: Vec<Zeroizing<[u8; LENGTH]>> =
        (1..threshold).map(|_| Zeroizing::new(env.random::<LENGTH>())).collect();
    (1..=shares)
        .map(|x| {
            let mut y = Zeroizing::new([0; LENGTH]);
            for coefficient in coefficients.iter().rev() {
                step(&mut y, x, coefficient);
            }
            step(&mut y, x, secret);
            Point { x, y }
        })
        .collect()
}

/// One step of Horner's scheme: y·x + c, for each byte.
fn step(y: &mut [u8; LENGTH], x: u8, c: &[u8; LENGTH]) {
    for (y, c) in y.iter_mut().zip(c) {
        *y = multiply(*y, x) ^ c;
    }
}

/// What the points share: the value of their polynomials at 0. The points are different ones, or
/// the result is meaningless.
pub(crate) fn combine(points: &[Point]) -> Zeroizing<[u8; LENGTH]> {
    let mut secret = Zeroizing::new([0; LENGTH]);
    for (i, point) in points.iter().enumerate() {
        let mut weight = 1;
        for (j, other) in points.iter().enumerate() {
            if i != j {
                weight = multiply(weight, multiply(other.x, invert(other.x ^ point.x)));
            }
        }
        for (sum, y) in secret.iter_mut().zip(point.y.iter()) {
            *sum ^= multiply(*y, weight);
        }
    }
    secret
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, section 4.2.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        assert_eq!(invert(0x53), 0xca);
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
        }
        assert_eq!(invert(0), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_subset_of_the_threshold_gives_it_back(
            secret: [u8; LENGTH],
            seed: u64,
            shares in 1_u8..=7,
            threshold in 1_u8..=7,
        ) {
            prop_assume!(threshold <= shares);
            let points = split(&secret, threshold, shares, &Environment::seeded(seed));
            for set in 0_u32..1 << shares {
                let some: Vec<Point> = points
                    .iter()
                    .filter(|point| set & (1 << (point.x - 1)) != 0)
                    .cloned()
                    .collect();
                if some.len() >= usize::from(threshold) {
                    prop_assert_eq!(*combine(&some), secret);
                }
            }
        }
    }

    #[test]
    fn hundreds_of_shares_work_as_few_do() {
        let points = split(&[0xa5; LENGTH], 200, 255, &Environment::seeded(5));
        assert_eq!(*combine(&points[55..]), [0xa5; LENGTH]);
        assert_ne!(*combine(&points[56..]), [0xa5; LENGTH]);
    }

    /// For two very different secrets, and for every share below the threshold, each value of a byte
    /// is as frequent as any other; also of two shares together (their sum with a factor).
    #[test]
    fn fewer_shares_than_the_threshold_tell_nothing() {
        const ROUNDS: usize = 2_000;
        let env = Environment::seeded(99);
        for secret in [[0; LENGTH], [0xff; LENGTH]] {
            let mut counts = vec![[0_u32; 256]; 5];
            for _ in 0..ROUNDS {
                let points = split(&secret, 3, 3, &env);
                for at in 0..LENGTH {
                    let (a, b) = (points[0].y[at], points[1].y[at]);
                    for (count, value) in counts.iter_mut().zip([
                        a,
                        b,
                        points[2].y[at],
                        // What two points would give if the threshold were two.
                        combine(&points[..2])[at],
                        a ^ multiply(b, 7),
                    ]) {
                        count[usize::from(value)] += 1;
                    }
                }
            }
            let expected = (ROUNDS * LENGTH) as f64 / 256.0;
            for count in &counts {
                let chi: f64 =
                    count.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
                // 255 degrees of freedom: mean 255, deviation 22.6; five of those either way.
                assert!((142.0..368.0).contains(&chi), "{chi}");
            }
        }
    }
}
