//! How keys are declared: once, with [`section!`].
//!
//! A declaration drives everything else: what a file may say, the environment variable of the key,
//! the reference page, and the field that the rest of the program reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::tree::{Data, Node, Origin, Place, Table};
use crate::error::{Error, ErrorKind};
use crate::units;

/// One key of a section: a row of the reference.
pub struct Key {
    /// As the field is called.
    pub field: &'static str,
    pub doc: &'static [&'static str],
    /// What it takes, in words.
    pub takes: fn() -> String,
    /// What it is when nobody says, in the words of a variable.
    pub default: Option<&'static str>,
    /// It has to be there.
    pub required: bool,
    /// As it is written in a file.
    pub example: &'static str,
    /// The keys of a key that is a section itself.
    pub nested: &'static [Key],
}

impl Key {
    /// As it is written in a file: "key-file".
    pub fn name(&self) -> String {
        self.field.replace('_', "-")
    }
}

/// A table whose keys are declared.
pub trait Section: Sized {
    const KEYS: &'static [Key];

    /// Reads what is declared. Problems go to `reading`; `None` when there is one.
    #[doc(hidden)]
    fn read_table(table: &mut Keyed<'_>, reading: &mut Reading) -> Option<Self>;
}

/// What a key can take.
pub trait Setting: Sized {
    const NESTED: &'static [Key] = &[];
    const REQUIRED: bool = true;

    /// In words, for the reference and for messages: "a path".
    fn takes() -> String;

    /// The value of a key that nobody mentions; `None` when somebody has to.
    fn absent() -> Option<Self> {
        None
    }

    /// Reads a value. Problems go to `reading`; `None` when there is one.
    #[doc(hidden)]
    fn read(node: &Node, path: &str, reading: &mut Reading) -> Option<Self>;
}

/// What reading has to know, and what it found wrong.
#[doc(hidden)]
pub struct Reading {
    pub(crate) file: Option<PathBuf>,
    /// Relative paths in the file are relative to this folder.
    pub(crate) folder: PathBuf,
    /// Relative paths in variables are relative to this one.
    pub(crate) current: PathBuf,
    pub(crate) home: Option<PathBuf>,
    pub(crate) problems: Vec<Error>,
}

impl Reading {
    pub(crate) fn place<'a>(&'a self, origin: &'a Origin) -> Place<'a> {
        Place { origin, file: self.file.as_deref() }
    }

    /// Notes that something at `origin` is wrong.
    pub(crate) fn problem(&mut self, origin: &Origin, message: &str, hint: impl Into<String>) {
        let message = format!("{message} ({})", self.place(origin));
        self.problems.push(Error::new(ErrorKind::Configuration, message).with_hint(hint));
    }

    fn wrong_type(&mut self, node: &Node, path: &str, takes: &str) {
        let message = format!("`{path}` takes {takes}, not {}", node.data.describe());
        self.problem(&node.origin, &message, format!("write {takes} there"));
    }

    /// The absolute form of a path that somebody wrote.
    fn resolve(&self, text: &str, origin: &Origin) -> PathBuf {
        let base = match origin {
            Origin::Line(_) => &self.folder,
            _ => &self.current,
        };
        absolute(text, base, self.home.as_deref())
    }
}

/// `text` as a path: `~/` is the home folder, and what is relative starts at `base`.
pub fn absolute(text: &str, base: &Path, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => {
            // `./x` reads better as `x` in every message that follows.
            let text = text.strip_prefix("./").unwrap_or(text);
            if text == "." { base.to_path_buf() } else { base.join(text) }
        }
    }
}

/// A table on its way to a section.
#[doc(hidden)]
pub struct Keyed<'a> {
    pub(crate) table: &'a Table,
    pub(crate) origin: &'a Origin,
    pub(crate) path: String,
}

impl Keyed<'_> {
    /// Reads one declared key.
    pub fn key<T: Setting>(
        &mut self,
        field: &str,
        default: Option<&str>,
        example: &str,
        reading: &mut Reading,
    ) -> Option<T> {
        let name = field.replace('_', "-");
        let path =
            if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
        if let Some(node) = self.table.take(&name) {
            return T::read(node, &path, reading);
        }
        if let Some(default) = default {
            let node = Node { data: Data::Loose(default.to_owned()), origin: Origin::Nowhere };
            return T::read(&node, &path, reading);
        }
        let absent = T::absent();
        if absent.is_none() {
            let message = format!("`{path}` is missing");
            reading.problem(self.origin, &message, format!("add `{name} = {example}`"));
        }
        absent
    }

    /// Complains of every key that nothing took. `known` are the keys that belong here.
    pub(crate) fn refuse_unknown(
        &self,
        known: &[String],
        elsewhere: &dyn Fn(&str) -> Option<String>,
        reading: &mut Reading,
    ) {
        let place =
            if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
        for slot in self.table.untaken() {
            let message = format!("unknown key `{}`{place}", slot.key);
            let hint = match (nearest(&slot.key, known), elsewhere(&slot.key)) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, Some(other)) => other,
                (None, None) => format!("the keys that belong here are {}", listed(known)),
            };
            reading.problem(&slot.origin, &message, hint);
        }
    }
}

/// The one of `candidates` that was most likely meant.
pub fn nearest<'a, S: AsRef<str>>(word: &str, candidates: &'a [S]) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .iter()
        .map(|candidate| {
            let name = candidate.as_ref();
            let plain = name.to_lowercase();
            let mut score = strsim::jaro_winkler(&word, &plain);
            if strsim::damerau_levenshtein(&word, &plain) <= 2 && plain.len() > 3 {
                score += 0.2;
            }
            (score, name)
        })
        .filter(|(score, _)| *score > 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// "`a`, `b` and `c`".
pub fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.split_last() {
        None => "none".into(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// Declares a section: a struct, its keys, and how it is read.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty { $(default: $default:literal,)? example: $example:literal },
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )*
        }

        impl $crate::config::declare::Section for $name {
            const KEYS: &'static [$crate::config::declare::Key] = &[$(
                $crate::config::declare::Key {
                    field: stringify!($field),
                    doc: &[$($doc),+],
                    takes: <$type as $crate::config::declare::Setting>::takes,
                    default: $crate::config::declare::section!(@default $($default)?),
                    required: <$type as $crate::config::declare::Setting>::REQUIRED
                        && $crate::config::declare::section!(@default $($default)?).is_none(),
                    example: $example,
                    nested: <$type as $crate::config::declare::Setting>::NESTED,
                },
            )*];

            fn read_table(
                table: &mut $crate::config::declare::Keyed<'_>,
                reading: &mut $crate::config::declare::Reading,
            ) -> Option<Self> {
                // Every key is read before any is missed, so that all mistakes are found at once.
                $( let $field: Option<$type> = table.key(
                    stringify!($field),
                    $crate::config::declare::section!(@default $($default)?),
                    $example,
                    reading,
                ); )*
                Some(Self { $( $field: $field?, )* })
            }
        }
    };
    (@default) => { None::<&'static str> };
    (@default $default:literal) => { Some($default) };
}
pub(crate) use section;

/// Makes a section usable as the value of a key.
macro_rules! nested {
    ($($name:ident),+) => { $(
        impl $crate::config::declare::Setting for $name {
            const NESTED: &'static [$crate::config::declare::Key] =
                <$name as $crate::config::declare::Section>::KEYS;

            fn takes() -> String {
                "a table".into()
            }

            fn read(
                node: &$crate::config::tree::Node,
                path: &str,
                reading: &mut $crate::config::declare::Reading,
            ) -> Option<Self> {
                $crate::config::declare::read_section(node, path, reading)
            }
        }
    )+ };
}
pub(crate) use nested;

/// Reads a section that stands alone in its table.
pub(crate) fn read_section<S: Section>(
    node: &Node,
    path: &str,
    reading: &mut Reading,
) -> Option<S> {
    let Data::Table(table) = &node.data else {
        reading.wrong_type(node, path, "a table");
        return None;
    };
    let mut keyed = Keyed { table, origin: &node.origin, path: path.to_owned() };
    let section = S::read_table(&mut keyed, reading);
    let known: Vec<String> = S::KEYS.iter().map(Key::name).collect();
    keyed.refuse_unknown(&known, &|_| None, reading);
    section
}

/// A setting that is one word or one text, parsed.
macro_rules! parsed {
    ($type:ty, $takes:expr, $parse:expr) => {
        impl $crate::config::declare::Setting for $type {
            fn takes() -> String {
                $takes.into()
            }

            fn read(
                node: &$crate::config::tree::Node,
                path: &str,
                reading: &mut $crate::config::declare::Reading,
            ) -> Option<Self> {
                $crate::config::declare::read_parsed(node, path, $takes, reading, $parse)
            }
        }
    };
}
pub(crate) use parsed;

pub(crate) fn read_parsed<T>(
    node: &Node,
    path: &str,
    takes: &str,
    reading: &mut Reading,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let (Data::Text(text) | Data::Loose(text)) = &node.data else {
        reading.wrong_type(node, path, takes);
        return None;
    };
    match parse(text) {
        Ok(value) => Some(value),
        Err(why) => {
            let message = format!("`{path}` cannot be used: {why}");
            reading.problem(&node.origin, &message, format!("it takes {takes}"));
            None
        }
    }
}

parsed!(String, "a text", |text| Ok::<_, String>(text.to_owned()));
parsed!(Duration, "a length of time such as \"5m\"", units::parse_duration);

impl Setting for PathBuf {
    fn takes() -> String {
        "a path".into()
    }

    fn read(node: &Node, path: &str, reading: &mut Reading) -> Option<Self> {
        let (Data::Text(text) | Data::Loose(text)) = &node.data else {
            reading.wrong_type(node, path, "a path");
            return None;
        };
        if text.is_empty() {
            let message = format!("`{path}` is empty");
            reading.problem(&node.origin, &message, "write a path, or leave the key out");
            return None;
        }
        Some(reading.resolve(text, &node.origin))
    }
}

impl Setting for bool {
    fn takes() -> String {
        "true or false".into()
    }

    fn read(node: &Node, path: &str, reading: &mut Reading) -> Option<Self> {
        match &node.data {
            Data::Boolean(value) => Some(*value),
            Data::Loose(text) if matches!(text.as_str(), "true" | "1" | "yes") => Some(true),
            Data::Loose(text) if matches!(text.as_str(), "false" | "0" | "no") => Some(false),
            _ => {
                reading.wrong_type(node, path, "true or false");
                None
            }
        }
    }
}

impl Setting for u32 {
    fn takes() -> String {
        "a whole number".into()
    }

    fn read(node: &Node, path: &str, reading: &mut Reading) -> Option<Self> {
        let (Data::Integer(text) | Data::Loose(text)) = &node.data else {
            reading.wrong_type(node, path, "a whole number");
            return None;
        };
        let value = text.trim().parse().ok();
        if value.is_none() {
            let message = format!("`{path}` takes a whole number of 0 or more, not {text:?}");
            reading.problem(&node.origin, &message, "write digits alone");
        }
        value
    }
}

impl<T: Setting> Setting for Option<T> {
    const NESTED: &'static [Key] = T::NESTED;
    const REQUIRED: bool = false;

    fn takes() -> String {
        T::takes()
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn read(node: &Node, path: &str, reading: &mut Reading) -> Option<Self> {
        T::read(node, path, reading).map(Some)
    }
}

impl<T: Setting> Setting for Vec<T> {
    const REQUIRED: bool = false;

    fn takes() -> String {
        let one = T::takes();
        let one = one.strip_prefix("a ").unwrap_or(&one);
        format!("a list of {one}s")
    }

    fn absent() -> Option<Self> {
        Some(Vec::new())
    }

    fn read(node: &Node, path: &str, reading: &mut Reading) -> Option<Self> {
        match &node.data {
            Data::List(nodes) => nodes
                .iter()
                .enumerate()
                .map(|(index, node)| T::read(node, &format!("{path}[{index}]"), reading))
                .collect::<Vec<_>>()
                .into_iter()
                .collect(),
            // Variables have no lists: commas part the items, and nothing else is special.
            Data::Loose(text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| {
                    let data = Data::Loose(item.to_owned());
                    T::read(&Node { data, origin: node.origin.clone() }, path, reading)
                })
                .collect::<Vec<_>>()
                .into_iter()
                .collect(),
            _ => {
                reading.wrong_type(node, path, &Self::takes());
                None
            }
        }
    }
}

impl Setting for BTreeMap<String, String> {
    const REQUIRED: bool = false;

    fn takes() -> String {
        "a table of texts".into()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn read(node: &Node, path: &str, reading: &mut Reading) -> Option<Self> {
        match &node.data {
            Data::Table(table) => table
                .slots
                .iter()
                .map(|slot| {
                    slot.taken.set(true);
                    let value = String::read(&slot.node, &format!("{path}.{}", slot.key), reading)?;
                    Some((slot.key.clone(), value))
                })
                .collect::<Vec<_>>()
                .into_iter()
                .collect(),
            Data::Loose(text) => {
                let pairs: Option<Self> = text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| item.split_once('='))
                    .map(|pair| pair.map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned())))
                    .collect();
                if pairs.is_none() {
                    let message = format!("`{path}` takes pairs");
                    reading.problem(
                        &node.origin,
                        &message,
                        "write them as `name=value,name=value`",
                    );
                }
                pairs
            }
            _ => {
                reading.wrong_type(node, path, "a table of texts");
                None
            }
        }
    }
}
