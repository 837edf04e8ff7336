//! How names of a server become names in a snapshot's tree, and back: `databases/NAME/…`.
//!
//! A name may hold anything but a zero byte. What would be another path is written as `%2F`; most
//! names stay as they are.

use std::fmt::Write as _;

/// Of the server as a whole.
pub const SERVER: &str = "catalogue.json";
/// Roles, their memberships and settings, and tablespaces, as statements.
pub const GLOBALS: &str = "globals.sql";
/// Above the databases.
pub const DATABASES: &str = "databases";

/// A name as one part of a path.
pub fn part(name: &str) -> String {
    let mut out = String::new();
    for (at, letter) in name.chars().enumerate() {
        let plain = !letter.is_control() && !matches!(letter, '/' | '%' | '\\');
        if plain && !(at == 0 && letter == '.') {
            out.push(letter);
            continue;
        }
        let mut bytes = [0; 4];
        for byte in letter.encode_utf8(&mut bytes).bytes() {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The folder of a database.
pub fn folder(database: &str) -> String {
    format!("{DATABASES}/{}", part(database))
}

/// What is known of a database.
pub fn catalogue(database: &str) -> String {
    format!("{}/catalogue.json", folder(database))
}

/// What `pg_restore` reads.
pub fn dump(database: &str) -> String {
    format!("{}/dump", folder(database))
}

/// The rows of a table, by its own name: the files of the dump are other names of these.
pub fn rows(database: &str, schema: &str, table: &str) -> String {
    format!("{}/data/{}/{}.copy", folder(database), part(schema), part(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_elsewhere() {
        assert_eq!(part("orders"), "orders");
        assert_eq!(part("Größe 1.2"), "Größe 1.2");
        assert_eq!(part("a/b"), "a%2Fb");
        assert_eq!(part(".."), "%2E.");
        assert_eq!(part("100%\n"), "100%25%0A");
        assert_eq!(rows("shop", "public", "a/b"), "databases/shop/data/public/a%2Fb.copy");
        // The content comes before its other names in the order of a tree.
        assert!(rows("x", "a", "b") < dump("x"));
    }
}
