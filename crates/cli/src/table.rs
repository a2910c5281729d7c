//! Columns that line up: the first to the left, the others to the right.

use std::fmt;

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left_columns: usize,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        let header = header.iter().map(ToString::to_string).collect();
        Self { rows: vec![header], left_columns: 1 }
    }

    /// How many columns, from the first on, hold text.
    pub(crate) fn left(mut self, columns: usize) -> Self {
        self.left_columns = columns;
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let space = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                let cell = if column < self.left_columns {
                    format!("{cell}{space}")
                } else {
                    format!("{space}{cell}")
                };
                line.push_str(if column == 0 { "  " } else { "   " });
                line.push_str(&cell);
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_in_one_column() {
        let mut table = Table::new(&["name", "size"]);
        table.row(vec!["a".into(), "10".into()]);
        table.row(vec!["bcd".into(), "9".into()]);
        assert_eq!(table.to_string(), "  name   size\n  a        10\n  bcd       9\n");
    }
}
