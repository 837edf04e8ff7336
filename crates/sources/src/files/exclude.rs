//! What a backup leaves out, said in the manner of `.gitignore`.
//!
//! - A pattern without a leading slash matches at every depth: `*.sock`, `target/debug`.
//! - With a leading slash it is an absolute path: `/srv/app/cache`.
//! - With a trailing slash it matches directories only.
//! - `*` and `?` stop at slashes, `**` does not; `[a-z]` and `{a,b}` work.
//! - `!` takes back what an earlier pattern excluded. The last pattern that matches decides, and
//!   nothing is found again below an excluded directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use backstay_repo::{RepoError, RepoErrorKind, Result};
use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};

/// Compiled patterns.
#[derive(Debug, Clone, Default)]
pub struct Exclude {
    set: Option<GlobSet>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    take_back: bool,
    directories_only: bool,
}

impl Exclude {
    /// Fails with [`RepoErrorKind::Usage`] on the first pattern that is none.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self> {
        if patterns.is_empty() {
            return Ok(Self::default());
        }
        let mut builder = GlobSetBuilder::new();
        let mut rules = Vec::new();
        for pattern in patterns {
            let whole = pattern.as_ref();
            let take_back = whole.starts_with('!');
            let pattern = whole.strip_prefix('!').unwrap_or(whole);
            let directories_only = pattern.ends_with('/');
            let pattern = pattern.trim_end_matches('/');
            let glob = match pattern.strip_prefix('/') {
                Some(absolute) => absolute.to_owned(),
                None if pattern.starts_with("**/") => pattern.to_owned(),
                None => format!("**/{pattern}"),
            };
            if glob.is_empty() || pattern.is_empty() {
                return Err(bad(whole, "it matches nothing"));
            }
            let glob = GlobBuilder::new(&glob)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| bad(whole, &error.kind().to_string()))?;
            builder.add(glob);
            rules.push(Rule { take_back, directories_only });
        }
        let set = builder
            .build()
            .map_err(|error| bad("(all of them together)", &error.kind().to_string()))?;
        Ok(Self { set: Some(set), rules })
    }

    /// Whether to leave out `path`, which is relative to `/`.
    pub fn is_excluded(&self, path: &[u8], directory: bool) -> bool {
        let Some(set) = &self.set else { return false };
        let candidate = Candidate::new(OsStr::from_bytes(path));
        let matches = set.matches_candidate(&candidate);
        matches
            .into_iter()
            .rev()
            .filter_map(|at| self.rules.get(at))
            .find(|rule| directory || !rule.directories_only)
            .is_some_and(|rule| !rule.take_back)
    }
}

fn bad(pattern: &str, why: &str) -> RepoError {
    RepoError::new(RepoErrorKind::Usage, format!("the pattern {pattern:?} is wrong: {why}"))
        .with_hint("patterns are written as in a .gitignore file, for example \"*.sock\" or \"/srv/app/cache/\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_their_rules_say() {
        let exclude =
            Exclude::new(&["*.sock", "/srv/app/cache", "target/debug", "tmp/", "!keep.sock"])
                .unwrap();
        for (path, directory, expected) in [
            ("a.sock", false, true),
            ("deep/er/b.sock", false, true),
            ("deep/keep.sock", false, false),
            ("srv/app/cache", true, true),
            ("other/srv/app/cache", true, false),
            ("x/target/debug", true, true),
            ("target/debug", true, true),
            ("target/release", true, false),
            ("x/tmp", true, true),
            ("x/tmp", false, false),
            ("srv/app/cache2", false, false),
        ] {
            assert_eq!(exclude.is_excluded(path.as_bytes(), directory), expected, "{path}");
        }
        assert!(exclude.is_excluded(b"\xff\xfe.sock", false));
    }

    #[test]
    fn a_star_stops_at_slashes_and_two_do_not() {
        let exclude = Exclude::new(&["/a/*/z", "/b/**/z"]).unwrap();
        assert!(exclude.is_excluded(b"a/x/z", false));
        assert!(!exclude.is_excluded(b"a/x/y/z", false));
        assert!(exclude.is_excluded(b"b/x/y/z", false));
    }

    #[test]
    fn a_wrong_pattern_is_named() {
        let error = Exclude::new(&["ok", "[a"]).unwrap_err();
        assert_eq!(error.kind(), RepoErrorKind::Usage);
        assert!(error.to_string().contains("\"[a\""), "{error}");
        assert!(Exclude::new(&["/"]).is_err());
    }
}
