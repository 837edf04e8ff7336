//! Which paths a source names, as one tree from `/` down.
//!
//! Overlapping paths merge. A path that leads through symbolic links is followed to what it means,
//! and every link on the way is kept as an entry too: a restore of everything then has the same
//! names as the machine had.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// As many links as the kernel follows in one path.
const MOST_LINKS: usize = 40;

/// A directory or other thing that the paths lead to or through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PlanNode {
    /// Everything below belongs to the source; otherwise only what `children` names.
    pub whole: bool,
    pub children: BTreeMap<Vec<u8>, Arc<PlanNode>>,
}

/// What to walk.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub root: PlanNode,
    /// Paths that lead nowhere, and why.
    pub missing: Vec<(PathBuf, io::Error)>,
    /// Paths that do lead somewhere.
    pub found: usize,
}

impl Plan {
    pub fn new(paths: &[PathBuf]) -> Self {
        let mut plan = Self::default();
        for path in paths {
            match resolve(path) {
                Ok(resolved) => {
                    for link in &resolved.links {
                        plan.root.insert(link, false);
                    }
                    plan.root.insert(&resolved.path, true);
                    plan.found += 1;
                }
                Err(error) => plan.missing.push((path.clone(), error)),
            }
        }
        plan
    }
}

impl PlanNode {
    fn insert(&mut self, path: &[Vec<u8>], whole: bool) {
        match path.split_first() {
            None => self.whole |= whole,
            Some((name, rest)) => {
                let child = self.children.entry(name.clone()).or_default();
                Arc::make_mut(child).insert(rest, whole);
            }
        }
    }
}

struct Resolved {
    path: Vec<Vec<u8>>,
    links: Vec<Vec<Vec<u8>>>,
}

fn resolve(path: &Path) -> io::Result<Resolved> {
    let absolute = std::path::absolute(path)?;
    let mut ahead: VecDeque<Vec<u8>> = components(absolute.as_os_str().as_bytes()).collect();
    let mut at: Vec<Vec<u8>> = Vec::new();
    let mut links = Vec::new();
    while let Some(name) = ahead.pop_front() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                at.pop();
                continue;
            }
            _ => at.push(name),
        }
        let here = join(&at);
        if !std::fs::symlink_metadata(&here)?.is_symlink() {
            continue;
        }
        if links.len() >= MOST_LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        links.push(at.clone());
        let target = std::fs::read_link(&here)?.into_os_string().into_vec();
        if target.first() == Some(&b'/') {
            at.clear();
        } else {
            at.pop();
        }
        for name in components(&target).collect::<Vec<_>>().into_iter().rev() {
            ahead.push_front(name);
        }
    }
    Ok(Resolved { path: at, links })
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
}

fn join(components: &[Vec<u8>]) -> PathBuf {
    let mut path = vec![b'/'];
    path.extend(components.join(&b'/'));
    PathBuf::from(OsStr::from_bytes(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(node: &PlanNode, path: &str, out: &mut Vec<String>) {
        for (name, child) in &node.children {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            if child.whole {
                out.push(path.clone());
            } else if child.children.is_empty() {
                out.push(format!("{path} (itself)"));
            }
            lines(child, &path, out);
        }
    }

    fn planned(base: &Path, paths: &[&str]) -> Vec<String> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| base.join(path)).collect();
        let plan = Plan::new(&paths);
        let mut out = Vec::new();
        lines(&plan.root, "", &mut out);
        let base = base.to_str().unwrap();
        out.extend(plan.missing.iter().map(|(path, _)| format!("missing {}", path.display())));
        out.into_iter().map(|line| line.replace(base, "")).collect()
    }

    #[test]
    fn overlapping_paths_merge_and_links_are_followed_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("data/app/sub")).unwrap();
        std::fs::create_dir_all(base.join("etc")).unwrap();
        std::os::unix::fs::symlink("../data/app", base.join("etc/app")).unwrap();
        std::os::unix::fs::symlink("loop", base.join("loop")).unwrap();
        assert_eq!(planned(&base, &["data", "data/app"]), ["/data", "/data/app"]);
        assert_eq!(planned(&base, &["etc/app/sub"]), ["/data/app/sub", "/etc/app (itself)"]);
        assert_eq!(planned(&base, &["etc/../data/./app/"]), ["/data/app"]);
        assert_eq!(planned(&base, &["loop", "nowhere"]), ["missing /loop", "missing /nowhere"]);
    }
}
