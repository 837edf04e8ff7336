//! Tables: aligned columns two spaces apart, a head, and no borders.
//!
//! Written here rather than taken from a crate: lines must not end in spaces, colours must not
//! count as width, and nothing is ever wrapped or cut.

use crate::output::{Paint, Style};

pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

struct Column {
    head: &'static str,
    right: bool,
}

pub struct Cell {
    text: String,
    style: Style,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: Style::Plain }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Cell {
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl Table {
    /// Columns by their heads; one that starts with `>` is aligned to the right.
    pub fn new(heads: &[&'static str]) -> Self {
        let columns = heads
            .iter()
            .map(|head| match head.strip_prefix('>') {
                Some(head) => Column { head, right: true },
                None => Column { head, right: false },
            })
            .collect();
        Self { columns, rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, without a newline at its end.
    pub fn render(&self, paint: Paint) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(index));
                cells
                    .map(|cell| cell.text.chars().count())
                    .chain([column.head.chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let heads: Vec<Cell> =
            self.columns.iter().map(|column| Cell::new(column.head, Style::Dim)).collect();
        let with_head = self.columns.iter().any(|column| !column.head.is_empty());
        let head = with_head.then_some(&heads);
        let lines: Vec<String> =
            head.into_iter().chain(&self.rows).map(|row| self.line(row, &widths, paint)).collect();
        lines.join("\n")
    }

    fn line(&self, row: &[Cell], widths: &[usize], paint: Paint) -> String {
        let mut line = String::new();
        let mut pending = 0;
        for ((cell, column), width) in row.iter().zip(&self.columns).zip(widths) {
            let gap = width.saturating_sub(cell.text.chars().count());
            let before = if column.right { gap } else { 0 };
            if !cell.text.is_empty() {
                line.extend(std::iter::repeat_n(' ', pending + before));
                line.push_str(&paint.paint(cell.style, &cell.text));
                pending = 0;
            } else {
                pending += before;
            }
            pending += gap - before + 2;
        }
        line
    }
}

/// "key  value" lines, aligned.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>, paint: Paint) -> String {
    let facts: Vec<_> = facts.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = facts
        .iter()
        .map(|(name, value)| {
            format!("{}  {value}", paint.paint(Style::Dim, format!("{name:<width$}")))
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_no_line_ends_in_spaces() {
        let mut table = Table::new(&["ID", ">SIZE", "NOTE"]);
        table.row(["a".into(), "10 B".into(), "".into()]);
        table.row(["long".into(), "5 B".into(), "x".into()]);
        assert_eq!(table.render(Paint::new(false)), "ID    SIZE  NOTE\na     10 B\nlong   5 B  x");
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let mut table = Table::new(&["A", "B"]);
        table.row([Cell::new("x", Style::Red), "y".into()]);
        table.row(["xx".into(), "y".into()]);
        let rendered = table.render(Paint::new(true));
        assert!(rendered.contains("\x1b[1;31mx\x1b[0m   y"), "{rendered:?}");
    }
}
