//! A page for paper: what stands on it, and how it looks as text and as HTML.
//!
//! The HTML has everything in itself and no script: it must still open in twenty years, from a
//! machine without a network.

use std::fmt::Write;

use qrcodegen::{QrCode, QrCodeEcc};
use zeroize::Zeroizing;

/// What a page is made of.
pub enum Block {
    Heading(String),
    Text(String),
    /// Names and values.
    Facts(Vec<(String, String)>),
    /// A head, and rows as wide as it.
    Table(Vec<&'static str>, Vec<Vec<String>>),
    /// Numbered; with what is typed, where something is.
    Steps(Vec<(String, String)>),
    /// A printed secret: in lines to type, and in one line to scan.
    Secret {
        title: String,
        lines: Zeroizing<String>,
        line: Zeroizing<String>,
    },
}

pub struct Page {
    pub title: String,
    pub blocks: Vec<Block>,
}

/// So wide is the text.
const WIDTH: usize = 78;

impl Page {
    pub fn text(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(16 << 10));
        let _ = writeln!(out, "{}\n{}", self.title, "=".repeat(self.title.chars().count()));
        for block in &self.blocks {
            out.push('\n');
            match block {
                Block::Heading(text) => {
                    let _ = writeln!(out, "{text}\n{}", "-".repeat(text.chars().count()));
                }
                Block::Text(text) => wrapped(&mut out, text, ""),
                Block::Facts(facts) => {
                    let width = facts.iter().map(|(name, _)| name.chars().count()).max();
                    for (name, value) in facts {
                        let _ = writeln!(out, "{name:<0$}  {value}", width.unwrap_or(0));
                    }
                }
                Block::Table(head, rows) => table(&mut out, head, rows),
                Block::Steps(steps) => {
                    for (at, (what, typed)) in steps.iter().enumerate() {
                        if at > 0 {
                            out.push('\n');
                        }
                        wrapped(&mut out, &format!("{}. {what}", at + 1), "   ");
                        if !typed.is_empty() {
                            out.push('\n');
                        }
                        for line in typed.lines() {
                            let _ = writeln!(out, "       {line}");
                        }
                    }
                }
                Block::Secret { title, lines, .. } => {
                    let _ = write!(out, "{title}\n\n{}", lines.as_str());
                }
            }
        }
        out
    }

    pub fn html(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(64 << 10));
        let title = escaped(&self.title);
        let _ = write!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
             name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}\
             </title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        );
        for block in &self.blocks {
            match block {
                Block::Heading(text) => {
                    let _ = writeln!(out, "<h2>{}</h2>", escaped(text));
                }
                Block::Text(text) => {
                    let _ = writeln!(out, "<p>{}</p>", escaped(text));
                }
                Block::Facts(facts) => {
                    out.push_str("<dl>\n");
                    for (name, value) in facts {
                        let _ =
                            writeln!(out, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
                    }
                    out.push_str("</dl>\n");
                }
                Block::Table(head, rows) => {
                    out.push_str("<table>\n<tr>");
                    head.iter().for_each(|cell| {
                        let _ = write!(out, "<th>{}</th>", escaped(cell));
                    });
                    out.push_str("</tr>\n");
                    for row in rows {
                        out.push_str("<tr>");
                        row.iter().for_each(|cell| {
                            let _ = write!(out, "<td>{}</td>", escaped(cell));
                        });
                        out.push_str("</tr>\n");
                    }
                    out.push_str("</table>\n");
                }
                Block::Steps(steps) => {
                    out.push_str("<ol>\n");
                    for (what, typed) in steps {
                        let _ = write!(out, "<li>{}", escaped(what));
                        if !typed.is_empty() {
                            let _ = write!(out, "<pre>{}</pre>", escaped(typed));
                        }
                        out.push_str("</li>\n");
                    }
                    out.push_str("</ol>\n");
                }
                Block::Secret { title, lines, line } => {
                    let _ = write!(
                        out,
                        "<section class=\"secret\">\n<div><h3>{}</h3><pre>{}</pre></div>\n",
                        escaped(title),
                        escaped(lines)
                    );
                    out.push_str(&qr(line));
                    out.push_str("</section>\n");
                }
            }
        }
        out.push_str("</body>\n</html>\n");
        out
    }
}

const STYLE: &str = "
@page { size: A4; margin: 18mm; }
body { font: 11pt/1.45 'Helvetica Neue', Arial, sans-serif; color: #111; max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6em; line-height: 1.2; border-bottom: 2px solid #111; padding-bottom: .4em; }
h2 { font-size: 1.15em; margin: 1.6em 0 .5em; break-after: avoid; }
h3 { font-size: 1em; margin: 0 0 .6em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25em 1.2em; margin: .8em 0; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: .8em 0; font-size: .95em; }
th { text-align: left; color: #555; font-weight: normal; }
th, td { padding: .3em 1em .3em 0; border-bottom: 1px solid #ccc; vertical-align: top; }
td { overflow-wrap: anywhere; } td:first-child { white-space: nowrap; }
li { margin: .7em 0; break-inside: avoid; }
pre { font: 10pt/1.5 'DejaVu Sans Mono', Menlo, Consolas, monospace; background: #f3f3f3;
  padding: .6em .9em; margin: .5em 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.secret { display: flex; gap: 1.5rem; align-items: center; justify-content: space-between;
  border: 2px solid #111; padding: 1rem 1.2rem; margin: 1rem 0; break-inside: avoid; }
.secret pre { background: none; padding: 0; font-size: 11pt; }
.secret svg { width: 42mm; height: 42mm; flex: none; }
@media print { body { margin: 0; max-width: none; padding: 0; } }
";

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A QR code as SVG; nothing where the text is too long for one.
fn qr(text: &str) -> Zeroizing<String> {
    let mut svg = Zeroizing::new(String::new());
    let Ok(code) = QrCode::encode_text(text, QrCodeEcc::Medium) else { return svg };
    // Four modules of white around it, as the standard wants.
    let size = code.size() + 8;
    let _ = write!(
        svg,
        "<svg viewBox=\"0 0 {size} {size}\" shape-rendering=\"crispEdges\" role=\"img\" \
         aria-label=\"the same as a QR code\"><rect width=\"{size}\" height=\"{size}\" \
         fill=\"#fff\"/><path d=\""
    );
    for y in 0..code.size() {
        for x in (0..code.size()).filter(|x| code.get_module(*x, y)) {
            let _ = write!(svg, "M{},{}h1v1h-1z", x + 4, y + 4);
        }
    }
    svg.push_str("\"/></svg>\n");
    svg
}

fn wrapped(out: &mut String, text: &str, indent: &str) {
    let mut column = 0;
    for (at, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if at > 0 && column + 1 + length > WIDTH {
            let _ = write!(out, "\n{indent}");
            column = indent.len();
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

fn table(out: &mut String, head: &[&'static str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_cannot_become_markup() {
        let page = Page {
            title: "<b>&\"".into(),
            blocks: vec![
                Block::Facts(vec![("<i>".into(), "<script>".into())]),
                Block::Table(vec!["a"], vec![vec!["</td>".into()]]),
                Block::Steps(vec![("<x>".into(), "<y>".into())]),
            ],
        };
        let html = page.html();
        let body = html.split("</style>").nth(1).unwrap();
        for tag in ["<b>", "<i>", "<script", "<x>", "<y>"] {
            assert!(!body.contains(tag), "{body}");
        }
    }

    #[test]
    fn text_is_wrapped_and_loses_nothing() {
        let text = "a word ".repeat(60);
        let mut out = String::new();
        wrapped(&mut out, text.trim_end(), "   ");
        assert!(out.lines().all(|line| line.chars().count() <= WIDTH), "{out}");
        assert_eq!(out.split_whitespace().count(), 120);
    }
}
