//! Every instruction set gives the sums and levels of the equation.

use attar_graph::testing::graph_from_text;

use super::int8::{Int8Job, Int8Weights, Output};
use crate::Pool;
use crate::geometry::Axis;
use crate::kernels::int8_convolution::{Int8Isa, int8_isa};
use crate::kernels::sums::Levels;

struct Case {
    attributes: &'static str,
    /// [outputs, inputs per group, height, width]
    weight: [usize; 4],
    /// [height, width]
    image: [usize; 2],
}

fn case(attributes: &'static str, weight: [usize; 4], image: [usize; 2]) -> Case {
    Case { attributes, weight, image }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("group=1", [7, 1, 1, 1], [1, 1]),
        case("strides=2,2, pads=1,1,1,1", [32, 3, 3, 3], [13, 12]),
        case("pads=1,1,1,1", [70, 5, 3, 3], [6, 7]),
        case("group=3, pads=2,0,1,2", [9, 4, 3, 2], [6, 5]),
        case("group=2, dilations=2,2", [130, 6, 2, 2], [7, 9]),
        case("dilations=1,2, pads=1,1,0,2, strides=1,2", [20, 6, 3, 3], [7, 9]),
        case("strides=2,2", [24, 9, 1, 1], [5, 8]),
        case("group=4", [8, 1, 2, 2], [5, 4]),
    ];
    for outputs in [1, 15, 16, 17, 33, 64, 65, 96, 144] {
        cases.push(case("group=1", [outputs, 10, 1, 1], [5, 7]));
    }
    let depthwise = |attributes, channels, kernel: [usize; 2], image| {
        case(attributes, [channels, 1, kernel[0], kernel[1]], image)
    };
    cases.extend([
        depthwise("group=2, pads=1,1,1,1", 2, [3, 3], [5, 6]),
        depthwise("group=64, pads=1,1,1,1", 64, [3, 3], [3, 9]),
        depthwise("group=70, pads=1,1,1,1, strides=2,2", 70, [3, 3], [7, 10]),
        depthwise("group=96, pads=2,2,2,2", 96, [5, 5], [5, 12]),
        depthwise("group=130, pads=2,2,2,2, strides=2,1", 130, [5, 5], [9, 4]),
        depthwise("group=20, dilations=2,3, pads=0,1,3,2", 20, [4, 3], [9, 11]),
        depthwise("group=5, pads=0,1,0,1", 5, [1, 3], [1, 300]),
    ]);
    cases
}

fn values(count: usize, seed: usize) -> impl Iterator<Item = i32> {
    (0..count).map(move |i| ((i * 7919 + seed) * 104_729 % 65_521 % 256) as i32)
}

impl Case {
    fn group(&self) -> usize {
        let node = &graph_from_text(&format!("y = Conv(x, {})", self.attributes)).nodes[0];
        super::settings::group(node).unwrap()
    }

    /// Sums and levels as the instruction set gives them, with the number of inputs of the image.
    fn run<T: Output + Default>(&self, isa: Int8Isa, x: &[u8], w: &[i16], batch: usize) -> Vec<T> {
        let node = &graph_from_text(&format!("y = Conv(x, {})", self.attributes)).nodes[0];
        let weights = Int8Weights::with_isa::<T>(isa, node, w, &self.weight).unwrap();
        let axes = weights.geometry.axes(&self.image).unwrap();
        let outputs = weights.outputs(Some(&self.bias()), X_ZERO, &self.scales());
        let pool = Pool::default();
        let (axes, outputs) = (&axes[..], &outputs);
        let job = Int8Job { x, x_zero: X_ZERO, batch, axes, outputs, levels: LEVELS, pool: &pool };
        let pixels: usize = axes.iter().map(|axis| axis.output).product();
        let mut y = vec![T::default(); batch * pixels * self.weight[0]];
        weights.run(&mut y, &job, &|_, _| {});
        y
    }

    fn bias(&self) -> Vec<i32> {
        (0..self.weight[0]).map(|o| o as i32 * 17 - 300).collect()
    }

    fn scales(&self) -> Vec<f32> {
        (0..self.weight[0]).map(|o| 0.0005 * (1 + o % 5) as f32).collect()
    }

    /// The equation.
    fn expected(&self, x: &[u8], w: &[i16], batch: usize) -> Vec<i32> {
        let node = &graph_from_text(&format!("y = Conv(x, {})", self.attributes)).nodes[0];
        let [outputs, inputs, height, width] = self.weight;
        let geometry = crate::geometry::Geometry::new(node, &[height, width]).unwrap();
        let axes: Vec<Axis> = geometry.axes(&self.image).unwrap();
        let (group, channels) = (self.group(), inputs * self.group());
        let mut sums = Vec::new();
        for n in 0..batch {
            for (py, px) in
                (0..axes[0].output).flat_map(|py| (0..axes[1].output).map(move |px| (py, px)))
            {
                for o in 0..outputs {
                    let mut sum = self.bias()[o];
                    for (c, ky, kx) in (0..inputs).flat_map(|c| {
                        (0..height).flat_map(move |ky| (0..width).map(move |kx| (c, ky, kx)))
                    }) {
                        let place = (axes[0].source(py, ky), axes[1].source(px, kx));
                        let (Some(y), Some(at)) = place else { continue };
                        let c_in = o / (outputs / group) * inputs + c;
                        let x = x[((n * self.image[0] + y) * self.image[1] + at) * channels + c_in];
                        let w = w[((o * inputs + c) * height + ky) * width + kx];
                        sum += (i32::from(x) - i32::from(X_ZERO)) * i32::from(w);
                    }
                    sums.push(sum);
                }
            }
        }
        sums
    }
}

const X_ZERO: u8 = 119;
const LEVELS: Levels = Levels { zero: 101, low: 7, high: 240 };

fn isas() -> Vec<Int8Isa> {
    let mut isas = vec![Int8Isa::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        let best = int8_isa();
        isas.extend((best == Int8Isa::Vnni).then_some(Int8Isa::Vnni));
        isas.extend((best != Int8Isa::Portable).then_some(Int8Isa::Avx2));
    }
    isas
}

#[test]
fn every_instruction_set_gives_the_sums_and_levels_of_the_equation() {
    let batch = 2;
    for case in cases() {
        let [outputs, inputs, height, width] = case.weight;
        let pixels: usize = case.image.iter().product();
        let x: Vec<u8> =
            values(batch * pixels * inputs * case.group(), 1).map(|x| x as u8).collect();
        let count = outputs * inputs * height * width;
        let narrow: Vec<i16> = values(count, 5).map(|w| w as i16 - 128).collect();
        let wide: Vec<i16> = values(count, 5).map(|w| (2 * w - 255) as i16).collect();
        let halved: Vec<i16> = narrow.iter().map(|w| w >> 1).collect();
        for w in [narrow, halved, wide] {
            let sums = case.expected(&x, &w, batch);
            let levels: Vec<u8> = (sums.iter().enumerate())
                .map(|(i, &sum)| {
                    let level = (sum as f32 * case.scales()[i % outputs]).round_ties_even() + 101.0;
                    level.clamp(7.0, 240.0) as u8
                })
                .collect();
            for isa in isas() {
                let name = format!("{isa:?} {} {:?}", case.attributes, case.weight);
                assert!(case.run::<i32>(isa, &x, &w, batch) == sums, "{name}");
                assert!(case.run::<u8>(isa, &x, &w, batch) == levels, "{name}");
            }
        }
    }
}

#[test]
fn sums_at_the_ends_of_the_range_saturate_nowhere() {
    // Sums of two products are beyond 16 bits in every pair, or at their end.
    for attributes in ["group=1", "group=64"] {
        let inputs = if attributes == "group=1" { 64 } else { 1 };
        let case = case(attributes, [64, inputs, 3, 3], [3, 3]);
        let count = 64 * inputs * 9;
        for (x, w) in [(255, -128), (255, 127), (0, -128), (0, 127), (255, -64), (255, 64)] {
            let (x, w) = (vec![x; 9 * 64], vec![w; count]);
            let expected = case.expected(&x, &w, 1);
            for isa in isas() {
                assert_eq!(case.run::<i32>(isa, &x, &w, 1), expected, "{isa:?}");
            }
        }
    }
}

#[test]
fn neither_batch_nor_threads_change_a_level() {
    let case = case("pads=1,1,1,1", [48, 24, 3, 3], [20, 31]);
    let x: Vec<u8> = values(3 * 20 * 31 * 24, 9).map(|x| x as u8).collect();
    let w: Vec<i16> = values(48 * 24 * 9, 4).map(|w| w as i16 - 128).collect();
    let run = |threads: usize, x: &[u8], batch: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.run::<u8>(int8_isa(), x, &w, batch))
    };
    let all = run(1, &x, 3);
    assert_eq!(run(3, &x, 3), all);
    let each = x.chunks_exact(20 * 31 * 24).flat_map(|image| run(2, image, 1));
    assert_eq!(each.collect::<Vec<u8>>(), all);
}
