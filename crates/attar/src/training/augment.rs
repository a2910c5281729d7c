//! Changes of images that leave their class alone, drawn anew for every batch.

use attar_train::Rng;
use serde::{Deserialize, Serialize};

use crate::Error;

/// What is done to images before they are trained on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Augment {
    /// Half of the images are mirrored, left and right.
    pub flip: bool,
    /// Pixels of black put on every side, out of which an image of the old size is cut anywhere.
    pub crop: usize,
    /// α of mixup (Zhang et al., 2018): images and their labels are mixed by shares drawn from
    /// Beta(α, α); 0 for none.
    pub mixup: f64,
}

const KNOWN: &str = "they are flip, crop=PIXELS and mixup=ALPHA";

impl Augment {
    /// Reads `flip,crop=4,mixup=0.2`.
    ///
    /// # Errors
    /// What it does not know.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut augment = Self::default();
        for part in text.split(',').map(str::trim) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let fail = |what: &str| Error::Usage {
                message: format!("--augment {text}: `{part}` {what}"),
                hint: KNOWN.into(),
            };
            match name {
                "flip" if value.is_empty() => augment.flip = true,
                "crop" => {
                    let pixels = value.parse().ok().filter(|&pixels| pixels <= 1024);
                    augment.crop = pixels.ok_or_else(|| fail("is no count of pixels"))?;
                }
                "mixup" => {
                    let alpha = value.parse().ok().filter(|&a: &f64| a > 0.0 && a <= 100.0);
                    augment.mixup = alpha.ok_or_else(|| fail("is no α above 0"))?;
                }
                _ => return Err(fail("is no augmentation")),
            }
        }
        Ok(augment)
    }

    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Mirrors and moves one image [channels, size, size]; `black` holds the value of black by
    /// channel.
    pub(crate) fn change(&self, image: &mut [f32], size: usize, black: &[f32], draw: &mut Rng) {
        if self.flip && draw.chance(0.5) {
            image.chunks_exact_mut(size.max(1)).for_each(<[f32]>::reverse);
        }
        if self.crop > 0 {
            let places = 2 * self.crop + 1;
            let (down, right) = (draw.below(places), draw.below(places));
            let plane = (size * size).max(1);
            for (plane, &black) in image.chunks_exact_mut(plane).zip(black) {
                moved(plane, size, [down, right].map(|at| at as isize - self.crop as isize), black);
            }
        }
    }

    /// The share of the first of two images and whom each one is mixed with; `None` without mixup.
    pub(crate) fn mix(&self, count: usize, draw: &mut Rng) -> Option<(f32, Vec<usize>)> {
        if self.mixup == 0.0 {
            return None;
        }
        let share = draw.beta(self.mixup, self.mixup) as f32;
        let mut partners: Vec<usize> = (0..count).collect();
        draw.shuffle(&mut partners);
        Some((share, partners))
    }
}

/// Shifts the content of a plane by (down, right) against its frame, and fills up.
fn moved(plane: &mut [f32], size: usize, [down, right]: [isize; 2], fill: f32) {
    let old = plane.to_vec();
    for (y, row) in plane.chunks_exact_mut(size).enumerate() {
        let from = y.checked_add_signed(down).filter(|&y| y < size);
        for (x, out) in row.iter_mut().enumerate() {
            let at = from.zip(x.checked_add_signed(right).filter(|&x| x < size));
            *out = at.map_or(fill, |(y, x)| old[y * size + x]);
        }
    }
}

/// Every row becomes share · row + (1 − share) · its partner's row.
pub(crate) fn mixed(rows: &[f32], width: usize, share: f32, partners: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for (row, &partner) in rows.chunks_exact(width.max(1)).zip(partners) {
        let other = &rows[partner * width..][..width];
        out.extend(row.iter().zip(other).map(|(&a, &b)| share * a + (1.0 - share) * b));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_or_named() {
        let augment = Augment::parse("flip, crop=4,mixup=0.2").unwrap();
        assert_eq!(augment, Augment { flip: true, crop: 4, mixup: 0.2 });
        for text in ["turn", "crop", "crop=-1", "mixup=0", "flip=yes", "mixup=nan", ""] {
            let error = Augment::parse(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("--augment {text}")), "{error}");
        }
    }

    #[test]
    fn an_image_is_moved_within_its_frame() {
        let mut plane = [1.0, 2.0, 3.0, 4.0];
        moved(&mut plane, 2, [1, 0], -1.0);
        assert_eq!(plane, [3.0, 4.0, -1.0, -1.0]);
        let mut plane = [1.0, 2.0, 3.0, 4.0];
        moved(&mut plane, 2, [0, -1], -1.0);
        assert_eq!(plane, [-1.0, 1.0, -1.0, 3.0]);
    }

    #[test]
    fn half_of_the_images_are_mirrored() {
        let augment = Augment { flip: true, ..Augment::default() };
        let mut draw = Rng::new(&[1]);
        let mirrored = (0..1000).filter(|_| {
            let mut image = [0.0, 1.0, 0.0, 1.0];
            augment.change(&mut image, 2, &[0.0], &mut draw);
            image == [1.0, 0.0, 1.0, 0.0]
        });
        assert!(mirrored.count().abs_diff(500) < 60);
    }

    #[test]
    fn rows_are_mixed_with_their_partners() {
        assert_eq!(mixed(&[1.0, 0.0, 0.0, 2.0], 2, 0.75, &[1, 0]), [0.75, 0.5, 0.25, 1.5]);
        assert!(Augment::default().mix(4, &mut Rng::new(&[1])).is_none());
    }
}
