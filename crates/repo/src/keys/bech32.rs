//! Bech32 (BIP 173), in which age writes its keys: a name, `1`, and five bits to a letter with a
//! checksum of six letters. No limit on the length, as age has none.

use zeroize::Zeroizing;

const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const CHECKSUM: usize = 6;

fn polymod(values: impl IntoIterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let mut sum: u32 = 1;
    for value in values {
        let top = sum >> 25;
        sum = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        for (bit, term) in GENERATOR.iter().enumerate() {
            if top >> bit & 1 == 1 {
                sum ^= term;
            }
        }
    }
    sum
}

fn expanded(name: &str) -> Vec<u8> {
    let high = name.bytes().map(|byte| byte >> 5);
    let low = name.bytes().map(|byte| byte & 31);
    high.chain([0]).chain(low).collect()
}

/// In lower case.
pub(crate) fn encode(name: &str, bytes: &[u8]) -> String {
    let mut digits = Vec::with_capacity(bytes.len() * 8 / 5 + 1 + CHECKSUM);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            digits.push((bits >> count & 31) as u8);
        }
        bits &= (1 << count) - 1;
    }
    if count > 0 {
        digits.push((bits << (5 - count) & 31) as u8);
    }
    let sum = polymod(expanded(name).into_iter().chain(digits.iter().copied()).chain([0; 6])) ^ 1;
    digits.extend((0..CHECKSUM).map(|at| (sum >> (5 * (5 - at)) & 31) as u8));
    let letters = digits.iter().map(|digit| char::from(ALPHABET[usize::from(*digit)]));
    format!("{name}1{}", letters.collect::<String>())
}

/// The name, in lower case, and the bytes; `None` when it is not right in any way.
pub(crate) fn decode(text: &str) -> Option<(String, Zeroizing<Vec<u8>>)> {
    // Upper or lower case, never both.
    let mixed = text.chars().any(|c| c.is_ascii_uppercase())
        && text.chars().any(|c| c.is_ascii_lowercase());
    if mixed || !text.is_ascii() {
        return None;
    }
    let text = Zeroizing::new(text.to_ascii_lowercase());
    let (name, letters) = text.rsplit_once('1')?;
    if name.is_empty() || letters.len() < CHECKSUM {
        return None;
    }
    let digits: Option<Vec<u8>> = letters
        .bytes()
        .map(|letter| ALPHABET.iter().position(|known| *known == letter).map(|at| at as u8))
        .collect();
    let digits = Zeroizing::new(digits?);
    if polymod(expanded(name).into_iter().chain(digits.iter().copied())) != 1 {
        return None;
    }
    let body = &digits[..digits.len() - CHECKSUM];
    let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() * 5 / 8));
    let (mut bits, mut count) = (0_u32, 0);
    for digit in body {
        bits = bits << 5 | u32::from(*digit);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 255) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // What is left over is less than a digit, and zero.
    (count < 5 && bits == 0).then(|| (name.to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vectors_of_bip_173() {
        for good in [
            "A12UEL5L",
            "a12uel5l",
            "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
        ] {
            assert!(decode(good).is_some(), "{good}");
        }
        for bad in
            ["A12uEL5L", "pzry9x0s0muk", "1pzry9x0s0muk", "x1b4n0q5v", "li1dgmt3", "A1G7SGD8"]
        {
            assert!(decode(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(name in "[a-z-]{1,12}", bytes: Vec<u8>, at: usize, other in 1_u8..32) {
            let text = encode(&name, &bytes);
            let (found, content) = decode(&text).unwrap();
            prop_assert_eq!((&found, &*content), (&name, &bytes));
            prop_assert_eq!(&*decode(&text.to_uppercase()).unwrap().1, &bytes);
            // Any wrong letter behind the name is found.
            let place = name.len() + 1 + at % (text.len() - name.len() - 1);
            let mut wrong = text.into_bytes();
            let digit = ALPHABET.iter().position(|known| *known == wrong[place]).unwrap() as u8;
            wrong[place] = ALPHABET[usize::from(digit ^ other)];
            prop_assert!(decode(&String::from_utf8(wrong).unwrap()).is_none());
        }

        #[test]
        fn anything_ends_in_an_answer(text in "\\PC{0,80}") {
            let _ = decode(&text);
        }
    }
}
