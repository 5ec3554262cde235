//! The rows as a table, JSON and CSV.

use super::Row;
use super::analysis::{Crossover, Exponents};
use crate::error::Result;
use crate::io::Target;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

/// The JSON file.
#[derive(Serialize)]
struct File<'a> {
    rows: &'a [Row],
    exponents: &'a Exponents,
    crossovers: &'a [Crossover],
}

/// Writes the JSON file.
///
/// # Errors
/// If the system refuses.
pub fn write_json(to: &Target, rows: &[Row], exponents: &Exponents, crossovers: &[Crossover]) -> Result<()> {
    let file = File { rows, exponents, crossovers };
    let text = serde_json::to_string_pretty(&file).expect("plain data");
    to.write(|w| writeln!(w, "{text}"))
}

/// Writes the rows as CSV, with JSON's names as its header.
///
/// # Errors
/// If the system refuses.
pub fn write_csv(to: &Target, rows: &[Row]) -> Result<()> {
    to.write(|w| {
        writeln!(
            w,
            "variant,direction,device,dtype,batch,heads,length,head_dim,causal,median_ms,min_ms,tflops,gbps,peak_bytes,error"
        )?;
        for r in rows {
            let Row { variant, direction, device, dtype, batch, heads, length, head_dim, causal, .. } = r;
            write!(w, "{variant},{direction},{device},{dtype},{batch},{heads},{length},{head_dim},{causal},")?;
            let Row { median_ms, min_ms, tflops, gbps, peak_bytes, error, .. } = r;
            let error = error.map(|e| e.to_string()).unwrap_or_default();
            writeln!(w, "{median_ms},{min_ms},{tflops},{gbps},{peak_bytes},{error}")?;
        }
        Ok(())
    })
}

/// Three digits that matter.
pub fn milliseconds(ms: f64) -> String {
    significant(ms, 3)
}

fn significant(x: f64, digits: i32) -> String {
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    let decimals = (digits - 1 - x.abs().log10().floor() as i32).max(0);
    format!("{x:.*}", decimals as usize)
}

/// An error: small ones as powers of ten.
fn short(e: f64) -> String {
    if e != 0.0 && e < 1e-3 { format!("{e:.1e}") } else { significant(e, 3) }
}

/// Such as `12 MiB`.
pub fn bytes(n: usize) -> String {
    match n {
        0..0x400 => format!("{n} B"),
        0x400..0x10_0000 => format!("{} KiB", n >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", n >> 20),
        _ => format!("{:.1} GiB", n as f64 / (1u64 << 30) as f64),
    }
}

/// The table on stdout.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(["variant", "T", "median ms", "min ms", "TFLOP/s", "GB/s", "memory", "error"]);
    for (i, r) in rows.iter().enumerate() {
        let again = i > 0 && rows[i - 1].variant == r.variant;
        table.add_row([
            if again { String::new() } else { r.variant.into() },
            r.length.to_string(),
            milliseconds(r.median_ms),
            milliseconds(r.min_ms),
            significant(r.tflops, 3),
            significant(r.gbps, 3),
            bytes(r.peak_bytes),
            r.error.map(short).unwrap_or_default(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// Exponents and crossovers, a line each.
pub fn findings(exponents: &Exponents, crossovers: &[Crossover]) -> String {
    let mut text = String::new();
    for (variant, by_direction) in exponents {
        for (direction, exponent) in by_direction {
            text += &format!("growth     {variant} ({direction}): T^{exponent:.2}\n");
        }
    }
    for c in crossovers {
        let at = match c.length {
            Some(t) if c.from_the_start => format!("faster at every length from {t}"),
            Some(t) => format!("faster from T ≈ {}", super::analysis::about(t)),
            None => "not faster at the longest length".into(),
        };
        text += &format!("crossover  {} against {} ({}): {at}\n", c.variant, c.against, c.direction);
    }
    text
}
