//! Colours for numbers.

use super::Color;

/// Viridis (Smith and van der Walt, 2015), at 0, 1/16, …, 1: evenly brighter to the eye, in grey and to the colour-blind
/// too.
const VIRIDIS: [Color; 17] = [
    [68, 1, 84],
    [72, 21, 103],
    [72, 38, 119],
    [69, 55, 129],
    [64, 71, 136],
    [57, 86, 140],
    [51, 99, 141],
    [45, 112, 142],
    [40, 125, 142],
    [35, 138, 141],
    [31, 150, 139],
    [32, 163, 135],
    [41, 175, 127],
    [85, 198, 103],
    [137, 213, 72],
    [193, 223, 36],
    [253, 231, 37],
];

/// The colour of a number from 0 to 1; outside, that of the nearer end.
pub fn viridis(x: f64) -> Color {
    let last = VIRIDIS.len() - 1;
    let x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) * last as f64 };
    let below = (x as usize).min(last - 1);
    let along = x - below as f64;
    let mixed = |i: usize| VIRIDIS[below][i] as f64 * (1.0 - along) + VIRIDIS[below + 1][i] as f64 * along;
    [0, 1, 2].map(|i| mixed(i).round() as u8)
}

/// Blue, white and red (Brewer's RdBu, which the colour-blind tell apart too), at -1, 0 and 1.
pub fn diverging(x: f64) -> Color {
    let x = if x.is_nan() { 0.0 } else { x.clamp(-1.0, 1.0) };
    let end: Color = if x < 0.0 { [33, 102, 172] } else { [178, 24, 43] };
    end.map(|c| (255.0 - (255.0 - c as f64) * x.abs()).round() as u8)
}

/// Lines that are told apart.
pub const LINES: [Color; 10] = [
    [29, 78, 216],
    [217, 72, 15],
    [21, 128, 61],
    [126, 34, 206],
    [190, 24, 93],
    [8, 145, 178],
    [161, 98, 7],
    [82, 82, 91],
    [153, 27, 27],
    [77, 124, 15],
];

/// A quarter of a colour on white.
pub fn pale(color: Color) -> Color {
    color.map(|c| 255 - (255 - c) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brighter_with_the_number() {
        let brightness = |c: Color| 0.2126 * c[0] as f64 + 0.7152 * c[1] as f64 + 0.0722 * c[2] as f64;
        let all: Vec<f64> = (0..=100).map(|i| brightness(viridis(i as f64 / 100.0))).collect();
        assert!(all.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!((viridis(-1.0), viridis(2.0), viridis(f64::NAN)), (VIRIDIS[0], VIRIDIS[16], VIRIDIS[0]));
        assert_eq!(viridis(1.0 / 16.0), VIRIDIS[1]);
        assert_eq!((diverging(0.0), diverging(2.0), diverging(-1.0)), ([255; 3], [178, 24, 43], [33, 102, 172]));
    }
}
