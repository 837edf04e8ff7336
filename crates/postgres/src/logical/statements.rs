//! A script cut into its statements, as `pg_dumpall` writes them.

/// The statements of a script, without comments, empty ones and commands of psql.
pub(super) fn split(script: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut current = String::new();
    let mut rest = script;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '-' if rest.starts_with("--") => {
                rest = rest.split_once('\n').map_or("", |(_, after)| after);
                continue;
            }
            '\\' if current.trim().is_empty() => {
                rest = rest.split_once('\n').map_or("", |(_, after)| after);
                continue;
            }
            '\'' => {
                let last = current.chars().last();
                let escapes = matches!(last, Some('E' | 'e'))
                    && !current
                        .chars()
                        .rev()
                        .nth(1)
                        .is_some_and(|c| c.is_alphanumeric() || c == '_');
                quoted(rest, '\'', escapes)
            }
            '"' => quoted(rest, '"', false),
            '$' => dollar(rest).unwrap_or(1),
            ';' => {
                let statement = current.trim();
                if !statement.is_empty() {
                    statements.push(statement.to_owned());
                }
                current.clear();
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            other => other.len_utf8(),
        };
        let (taken, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        current.push_str(taken);
        rest = after;
    }
    let statement = current.trim();
    if !statement.is_empty() {
        statements.push(statement.to_owned());
    }
    statements
}

/// Bytes of what is quoted at the beginning of a text, quotes included.
fn quoted(text: &str, quote: char, escapes: bool) -> usize {
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        if escapes && letter == '\\' {
            letters.next();
        } else if letter == quote {
            match letters.peek() {
                Some((_, next)) if *next == quote => {
                    letters.next();
                }
                _ => return at + 1,
            }
        }
    }
    text.len()
}

/// Bytes of `$tag$ … $tag$` at the beginning of a text.
fn dollar(text: &str) -> Option<usize> {
    let end = text.get(1..)?.find('$')? + 2;
    let tag = text.get(..end)?;
    let inner = tag.trim_matches('$');
    if !inner.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let after = text.get(end..)?.find(tag)?;
    Some(end + after + tag.len())
}

/// The words of a statement; what is in double quotes is one, without them.
pub(super) fn words(statement: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = statement.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => quoted(rest, '"', false),
            _ => rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len()).max(1),
        };
        let (word, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        words.push(match word.strip_prefix('"').and_then(|word| word.strip_suffix('"')) {
            Some(inner) => inner.replace("\"\"", "\""),
            None => word.to_owned(),
        });
        rest = after.trim_start();
    }
    words
}

/// A statement about a database, about another one: the name behind the word DATABASE is replaced.
/// None where it names another one or none.
pub(super) fn renamed(statement: &str, from: &str, to: &str) -> Option<String> {
    let mut at = 0;
    let mut behind = false;
    while let Some(rest) = statement.get(at..).filter(|rest| !rest.is_empty()) {
        let first = rest.chars().next()?;
        let length = match first {
            '"' => quoted(rest, '"', false),
            '\'' => quoted(rest, '\'', false),
            c if c.is_whitespace() => c.len_utf8(),
            _ => rest
                .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\''))
                .unwrap_or(rest.len()),
        };
        let token = rest.get(..length)?;
        if !first.is_whitespace() {
            if behind && words(token).as_slice() == [from] {
                let after = rest.get(length..)?;
                return Some(format!("{}{}{after}", statement.get(..at)?, identifier(to)));
            }
            behind = token == "DATABASE";
        }
        at += length;
    }
    None
}

/// A name as it is written in a statement.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_cut_where_its_statements_end() {
        let script = "--\n-- Roles; all of them\n--\n\\restrict x\nCREATE ROLE \"a;b\";\n\
            COMMENT ON ROLE x IS 'it''s; \nfine -- really';\nSELECT E'a\\';b', $q$c;d$q$, $1;\n;;\n\
            ALTER ROLE x SET y TO 'C:\\';\nSELECT 1";
        assert_eq!(
            split(script),
            [
                "CREATE ROLE \"a;b\"",
                "COMMENT ON ROLE x IS 'it''s; \nfine -- really'",
                "SELECT E'a\\';b', $q$c;d$q$, $1",
                "ALTER ROLE x SET y TO 'C:\\'",
                "SELECT 1",
            ]
        );
        assert_eq!(
            words("ALTER ROLE \"my \"\"x\" WITH\nLOGIN"),
            ["ALTER", "ROLE", "my \"x", "WITH", "LOGIN"]
        );
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        for (statement, is) in [
            (
                "CREATE DATABASE shop WITH ENCODING = 'x'",
                "CREATE DATABASE \"it\" WITH ENCODING = 'x'",
            ),
            (
                "ALTER ROLE \"DATABASE\" IN DATABASE shop SET a TO 'DATABASE shop'",
                "ALTER ROLE \"DATABASE\" IN DATABASE \"it\" SET a TO 'DATABASE shop'",
            ),
            (
                "COMMENT ON DATABASE shop IS 'DATABASE shop'",
                "COMMENT ON DATABASE \"it\" IS 'DATABASE shop'",
            ),
            ("GRANT ALL ON DATABASE shop TO database", "GRANT ALL ON DATABASE \"it\" TO database"),
        ] {
            assert_eq!(renamed(statement, "shop", "it").as_deref(), Some(is));
            assert_eq!(renamed(statement, "other", "it"), None);
        }
        assert_eq!(
            renamed("ALTER DATABASE \"a\"\" b\" SET x TO 1", "a\" b", "shop").unwrap(),
            "ALTER DATABASE \"shop\" SET x TO 1"
        );
        for broken in ["'", "\"", "$a$", "E'\\", "$", "--", "\\"] {
            split(broken);
            words(broken);
            renamed(broken, "a", "b");
        }
    }
}
