//! Secrets on paper: groups of five letters and digits that a person can type, with every mistake
//! found and named.
//!
//! ```text
//! byte 0   what it is: 1 a share of an escrow set, 2 the content of a key file
//!      1…  the payload, whose length follows from byte 0
//!          the first 6 bytes of BLAKE3("backstay v1 printed", all before)
//! ```
//!
//! The bytes are written in base 32, four digits to a group, in Crockford's alphabet (no I, L, O,
//! U; I and L are read as 1, O as 0, and case does not matter). Bits that are left over are zero.
//! The fifth letter of a group is a check: `α·d1 + α²·d2 + α³·d3 + α⁴·d4 + number of the group` in
//! GF(32). It finds every wrong letter, every two letters swapped within a group, and every two
//! groups swapped; the six bytes at the end find whatever else there is. No message repeats a group.

use zeroize::Zeroizing;

use crate::{RepoError, RepoErrorKind, Result};

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHECKSUM: usize = 6;
/// Groups on a line.
const IN_A_LINE: usize = 5;

/// What a printed secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Share = 1,
    KeyFile = 2,
}

impl Content {
    /// The length of the payload. Bytes.
    const fn length(self) -> usize {
        match self {
            Self::Share => 8 + 8 + 1 + 1 + 32,
            Self::KeyFile => 32,
        }
    }

    const fn groups(self) -> usize {
        ((1 + self.length() + CHECKSUM) * 8).div_ceil(20)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::KeyFile => "key",
        }
    }
}

fn multiply(a: u8, b: u8) -> u8 {
    // x^5 + x^2 + 1.
    let (mut a, mut product) = (a, 0);
    for bit in 0..5 {
        if b & (1 << bit) != 0 {
            product ^= a;
        }
        a = if a & 0x10 != 0 { ((a << 1) & 0x1f) ^ 0x05 } else { a << 1 };
    }
    product
}

fn check_of(digits: &[u8], group: usize) -> u8 {
    let mut factor = 1;
    let mut sum = (group % 32) as u8;
    for digit in digits {
        factor = multiply(factor, 2);
        sum ^= multiply(factor, *digit);
    }
    sum
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = blake3::derive_key("backstay v1 printed", bytes);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&hash[..CHECKSUM]);
    sum
}

/// The groups of a payload, which has the length of its content.
pub(crate) fn groups(content: Content, payload: &[u8]) -> Vec<Zeroizing<String>> {
    debug_assert_eq!(payload.len(), content.length());
    let mut bytes = Zeroizing::new(vec![content as u8]);
    bytes.extend_from_slice(payload);
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum);
    let digit = |at: usize| {
        (0..5).fold(0_u8, |digit, bit| {
            let at = at * 5 + bit;
            let byte = bytes.get(at / 8).copied().unwrap_or(0);
            digit << 1 | (byte >> (7 - at % 8)) & 1
        })
    };
    (0..content.groups())
        .map(|group| {
            let mut digits = Zeroizing::new([0_u8; 5]);
            for (at, place) in digits[..4].iter_mut().enumerate() {
                *place = digit(group * 4 + at);
            }
            digits[4] = check_of(&digits[..4], group);
            let text: String =
                digits.iter().map(|digit| char::from(ALPHABET[usize::from(*digit)])).collect();
            Zeroizing::new(text)
        })
        .collect()
}

/// Groups in numbered lines, for paper.
pub(crate) fn lines(groups: &[Zeroizing<String>]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(groups.len() * 8));
    for (line, groups) in groups.chunks(IN_A_LINE).enumerate() {
        let label = format!("{:>3}:", line * IN_A_LINE + 1);
        text.push_str(&label);
        for group in groups {
            text.push(' ');
            text.push_str(group);
        }
        text.push('\n');
    }
    text
}

fn digit_of(letter: char) -> Option<u8> {
    let letter = match letter.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    ALPHABET.iter().position(|known| char::from(*known) == letter).map(|at| at as u8)
}

/// Reads what [`lines`] wrote: any number of secrets, with blank lines or lines that begin with `#`
/// between them. Words that end with `:` are numbers of lines; hyphens part groups as blanks do.
///
/// # Errors
/// Usage, with every group that is wrong by its number.
pub(crate) fn read(text: &str) -> Result<Vec<(Content, Zeroizing<Vec<u8>>)>> {
    let mut found = Vec::new();
    let mut block: Vec<&str> = Vec::new();
    for line in text.lines().chain([""]) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            while !block.is_empty() {
                let nth = found.len() + 1;
                found.push(read_one(&mut block, nth)?);
            }
            continue;
        }
        block.extend(
            line.split(|c: char| c.is_whitespace() || c == '-')
                .filter(|word| !word.is_empty() && !word.ends_with(':')),
        );
    }
    Ok(found)
}

/// Takes one secret, the `nth` of several, off the beginning of `words`.
fn read_one(words: &mut Vec<&str>, nth: usize) -> Result<(Content, Zeroizing<Vec<u8>>)> {
    let read = |(number, word): (usize, &&str)| {
        let digits: Option<Vec<u8>> = word.chars().map(digit_of).collect();
        digits
            .filter(|digits| digits.len() == 5 && check_of(&digits[..4], number) == digits[4])
            .map(Zeroizing::new)
    };
    let groups: Vec<Option<Zeroizing<Vec<u8>>>> =
        words.iter().enumerate().take(Content::Share.groups()).map(read).collect();
    // Its first byte is in the first group.
    let first = groups.first().and_then(|group| group.as_ref());
    let content = match first.map(|digits| digits[0] << 3 | digits[1] >> 2) {
        Some(1) => Content::Share,
        Some(2) => Content::KeyFile,
        Some(_) => return Err(wrong("it was printed by a newer version of the program")),
        // Most likely, when nothing else can be said.
        None if words.len() == Content::KeyFile.groups() => Content::KeyFile,
        None => Content::Share,
    };
    let (what, wanted) = (content.name(), content.groups());
    let groups = &groups[..groups.len().min(wanted)];
    let bad: Vec<usize> = groups
        .iter()
        .enumerate()
        .filter(|(_, group)| group.is_none())
        .map(|(n, _)| n + 1)
        .collect();
    if words.len() < wanted {
        let missing = wanted - words.len();
        let place = match bad.first() {
            Some(first) => format!("; the first that is missing or mistyped is group {first}"),
            None => String::new(),
        };
        return Err(wrong(format!(
            "{what} {nth} has {} of {wanted} groups, {missing} too few{place}",
            words.len()
        )));
    }
    match bad.as_slice() {
        [] => {}
        [one] => return Err(wrong(format!("group {one} of {what} {nth} is mistyped"))),
        [first, .., last] if bad.len() > 3 => {
            return Err(wrong(format!(
                "{} groups of {what} {nth} are mistyped, the first is group {first}, the last \
                 group {last}",
                bad.len()
            )));
        }
        several => {
            let numbers: Vec<String> = several.iter().map(usize::to_string).collect();
            return Err(wrong(format!(
                "groups {} of {what} {nth} are mistyped",
                numbers.join(" and ")
            )));
        }
    }
    let mut bytes = Zeroizing::new(vec![0_u8; (wanted * 20).div_ceil(8)]);
    let digits = groups.iter().flatten().flat_map(|digits| digits[..4].iter());
    for (at, digit) in digits.enumerate() {
        for bit in 0..5 {
            let place = at * 5 + bit;
            bytes[place / 8] |= (digit >> (4 - bit) & 1) << (7 - place % 8);
        }
    }
    let body = 1 + content.length();
    let right = bytes[body..body + CHECKSUM] == checksum(&bytes[..body])
        && bytes[body + CHECKSUM..].iter().all(|byte| *byte == 0);
    if !right {
        return Err(wrong(format!(
            "{what} {nth} is mistyped in several places, though each group looks right"
        )));
    }
    words.drain(..wanted);
    Ok((content, Zeroizing::new(bytes[1..body].to_vec())))
}

fn wrong(what: impl Into<String>) -> RepoError {
    RepoError::new(RepoErrorKind::Usage, what).with_hint(
        "compare it with the paper: groups are counted from 1, five stand in a line, and each line \
         begins with the number of its first group",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(content: Content, payload: &[u8]) -> String {
        lines(&groups(content, payload)).to_string()
    }

    fn payload(content: Content) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), content.length())
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(share in payload(Content::Share), key in payload(Content::KeyFile)) {
            let both = format!(
                "# a comment\n{}{}\n{}",
                text(Content::Share, &share),
                text(Content::Share, &share).to_lowercase().replace(' ', "-"),
                text(Content::KeyFile, &key)
            );
            let found = read(&both).unwrap();
            prop_assert_eq!(found.len(), 3);
            prop_assert_eq!(&*found[0].1, &share);
            prop_assert_eq!(&*found[1].1, &share);
            prop_assert_eq!((found[2].0, &*found[2].1), (Content::KeyFile, &key));
        }

        #[test]
        fn any_wrong_letter_is_found_in_its_group(
            share in payload(Content::Share),
            group in 0..Content::Share.groups(),
            place in 0_usize..5,
            other in 1_u8..32,
        ) {
            let mut all = groups(Content::Share, &share);
            let mut letters: Vec<char> = all[group].chars().collect();
            let digit = digit_of(letters[place]).unwrap();
            letters[place] = char::from(ALPHABET[usize::from(digit ^ other)]);
            all[group] = Zeroizing::new(letters.iter().collect());
            let error = read(&lines(&all)).unwrap_err().to_string();
            prop_assert_eq!(error, format!("group {} of share 1 is mistyped", group + 1));
        }

        #[test]
        fn letters_and_groups_that_changed_places_are_found(
            share in payload(Content::Share),
            a in 0..Content::Share.groups(),
            b in 0..Content::Share.groups(),
            x in 0_usize..5,
            y in 0_usize..5,
        ) {
            let mut all = groups(Content::Share, &share);
            let mut letters: Vec<char> = all[a].chars().collect();
            if letters[x] != letters[y] {
                letters.swap(x, y);
                let right = std::mem::replace(&mut all[a], Zeroizing::new(letters.iter().collect()));
                prop_assert!(read(&lines(&all)).is_err());
                all[a] = right;
            }
            if a != b {
                all.swap(a, b);
                let error = read(&lines(&all)).unwrap_err().to_string();
                let (first, last) = (a.min(b) + 1, a.max(b) + 1);
                prop_assert_eq!(error, format!("groups {first} and {last} of share 1 are mistyped"));
            }
        }

        #[test]
        fn a_group_that_is_missing_is_found(
            share in payload(Content::Share),
            group in 0..Content::Share.groups(),
        ) {
            let mut all = groups(Content::Share, &share);
            all.remove(group);
            let error = read(&lines(&all)).unwrap_err().to_string();
            prop_assert!(error.starts_with("share 1 has 22 of 23 groups, 1 too few"), "{}", error);
        }

        #[test]
        fn whatever_is_read_ends_in_an_answer(text in "\\PC{0,300}", words in "([0-9a-zA-Z:#-]{1,7}[ \n]){0,60}") {
            let _ = read(&text);
            let _ = read(&words);
        }
    }

    #[test]
    fn messages_do_not_repeat_what_was_typed() {
        let mut all = groups(Content::KeyFile, &[0x5a; 32]);
        all[3] = Zeroizing::new("QQQQQ".into());
        let error = read(&lines(&all)).unwrap_err();
        assert_eq!(error.to_string(), "group 4 of key 1 is mistyped");
        assert!(!format!("{error:?}").contains("QQQQQ"));
    }

    #[test]
    fn the_form_is_pinned() {
        let found = text(Content::KeyFile, &std::array::from_fn::<u8, 32, _>(|n| n as u8));
        assert_eq!(found.lines().count(), 4);
        assert_eq!(found.lines().next(), Some("  1: 08005 20G34 0G2GN C1R8N 1450V"));
    }
}
