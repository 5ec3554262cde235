//! The rows as a table, JSON and CSV.

use super::Row;
use super::analysis::{Crossover, Exponents};
use super::peer::PeerRow;
use super::roofline::Peaks;
use crate::error::Result;
use crate::io::Target;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

/// The JSON file.
#[derive(Serialize)]
pub struct Results<'a> {
    /// Ours: one a variant, length and direction.
    pub rows: &'a [Row],
    /// How each variant grows.
    pub exponents: &'a Exponents,
    /// From where on one beats another.
    pub crossovers: &'a [Crossover],
    /// With `--peer`: one a variant, length and backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<&'a [PeerRow]>,
    /// On a GPU: its measured ceilings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roofline: Option<Peaks>,
}

/// Writes the JSON file.
///
/// # Errors
/// If the system refuses.
pub fn write_json(to: &Target, results: &Results) -> Result<()> {
    let text = serde_json::to_string_pretty(results).expect("plain data");
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
            "variant,direction,device,dtype,batch,heads,length,head_dim,causal,median_ms,min_ms,tflops,gbps,peak_bytes,error,features"
        )?;
        for r in rows {
            let Row { variant, direction, device, dtype, batch, heads, length, head_dim, causal, .. } = r;
            write!(w, "{variant},{direction},{device},{dtype},{batch},{heads},{length},{head_dim},{causal},")?;
            let Row { median_ms, min_ms, tflops, gbps, peak_bytes, error, features, .. } = r;
            let error = error.map(|e| e.to_string()).unwrap_or_default();
            let features = r.recurrence.map_or_else(|| features.summary(*heads), |sizes| sizes.summary());
            writeln!(w, "{median_ms},{min_ms},{tflops},{gbps},{peak_bytes},{error},{features}")?;
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

/// The table on stdout: each of our rows, then the peer's on the same case, with ours over theirs.
pub fn table(rows: &[Row], peers: &[PeerRow]) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    let (compared, on_gpu) = (!peers.is_empty(), rows.iter().any(|r| r.roofline.is_some()));
    let mut header = vec!["variant", "T", "median ms", "min ms", "TFLOP/s", "GB/s", "memory", "error"];
    header.extend(on_gpu.then_some(["of peak", "of bandwidth"]).into_iter().flatten());
    header.extend(compared.then_some("ratio"));
    table.set_header(header.clone());
    for (i, r) in rows.iter().enumerate() {
        let again = !compared && i > 0 && rows[i - 1].variant == r.variant;
        let mut cells = vec![
            if again { String::new() } else { r.variant.into() },
            r.length.to_string(),
            milliseconds(r.median_ms),
            milliseconds(r.min_ms),
            significant(r.tflops, 3),
            significant(r.gbps, 3),
            bytes(r.peak_bytes),
            r.error.map(short).unwrap_or_default(),
        ];
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        cells.extend(r.roofline.iter().flat_map(|f| [percent(f.of_peak), percent(f.of_bandwidth)]));
        table.add_row(padded(cells, header.len()));
        for p in peers.iter().filter(|p| (p.variant, p.length) == (r.variant, r.length)) {
            let figure = |x: Option<f64>| x.map(|x| significant(x, 3)).unwrap_or_default();
            let mut cells = vec![format!("  {} {}", p.peer, p.backend), p.length.to_string()];
            cells.push(if p.refused.is_some() { "refused".into() } else { figure(p.median_ms) });
            cells.extend([p.min_ms, p.tflops, p.gbps].map(figure));
            cells.push(p.peak_bytes.map(bytes).unwrap_or_default());
            let mut cells = padded(cells, header.len());
            *cells.last_mut().expect("as many as the header") = p.ratio.map(|x| significant(x, 2)).unwrap_or_default();
            table.add_row(cells);
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

fn padded(mut cells: Vec<String>, columns: usize) -> Vec<String> {
    cells.resize(columns, String::new());
    cells
}

/// What the table's columns stand on: the peer's version and refusals, the measured ceilings.
pub fn notes(peers: &[PeerRow], peaks: Option<Peaks>) -> String {
    let mut text = String::new();
    if let Some(first) = peers.first() {
        text += &format!("ratio      attn's time over {} {}'s: below 1, attn is faster\n", first.peer, first.version);
    }
    // The same reason at several lengths is said once.
    let mut said: Vec<(&PeerRow, &str, Vec<String>)> = Vec::new();
    for p in peers {
        let Some(why) = &p.refused else { continue };
        match said.iter_mut().find(|(q, w, _)| (q.variant, &q.backend, *w) == (p.variant, &p.backend, why)) {
            Some((_, _, lengths)) => lengths.push(p.length.to_string()),
            None => said.push((p, why, vec![p.length.to_string()])),
        }
    }
    for (p, why, lengths) in said {
        text += &format!("refused    {} {} at T = {}, {}: {why}\n", p.peer, p.backend, lengths.join(", "), p.variant);
    }
    if let Some(Peaks { dtype, tflops, gbps }) = peaks {
        let (tflops, gbps) = (significant(tflops, 3), significant(gbps, 3));
        text += &format!("ceilings   {tflops} TFLOP/s in a large {dtype} product, {gbps} GB/s in a large copy\n");
    }
    text
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
