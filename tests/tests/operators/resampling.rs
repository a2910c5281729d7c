//! Images resized and sampled at points.

use attar_tensor::Tensor;

use crate::case::*;

fn scales(values: &[f32]) -> Tensor {
    Tensor::new(&[values.len()], values)
}

fn resizes() -> Vec<Case> {
    let mut cases = Vec::new();
    let coordinates =
        ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"];
    for mode in ["nearest", "linear", "cubic"] {
        for transformation in coordinates {
            let text = format!(
                "y = Resize(x, , s, mode={mode}, coordinate_transformation_mode={transformation})"
            );
            for factors in [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.5, 2.5], [1.0, 1.0, 0.5, 3.0]] {
                let feeds = vec![("x", f32s(&[1, 3, 8, 10])), ("s", scales(&factors))];
                cases.push(case(&text, feeds).opset(19).within(2e-5));
            }
            let text = format!(
                "y = Resize(x, , , n, mode={mode}, coordinate_transformation_mode={transformation})"
            );
            for sizes in [[2, 3, 5, 21], [2, 3, 17, 4]] {
                let feeds = vec![("x", f32s(&[2, 3, 9, 11])), ("n", i64s(&sizes))];
                cases.push(case(&text, feeds).opset(19).within(2e-5));
            }
        }
    }
    for nearest in ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"] {
        for transformation in coordinates {
            let text = format!(
                "y = Resize(x, , s, nearest_mode={nearest}, \
                 coordinate_transformation_mode={transformation})"
            );
            for factors in [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 3.0, 0.5]] {
                let feeds = vec![("x", bytes_u8(&[1, 2, 6, 8])), ("s", scales(&factors))];
                cases.push(case(&text, feeds).opset(19).exact());
            }
        }
    }
    for settings in [
        "mode=linear, antialias=1",
        "mode=cubic, antialias=1",
        "mode=cubic, antialias=1, exclude_outside=1",
        "mode=cubic, exclude_outside=1",
        "mode=cubic, cubic_coeff_a=-0.5",
    ] {
        for factors in [[1.0, 1.0, 0.6, 0.6], [1.0, 1.0, 0.25, 0.4]] {
            let text = format!("y = Resize(x, , s, {settings})");
            let feeds = vec![("x", f32s(&[1, 2, 20, 30])), ("s", scales(&factors))];
            cases.push(case(text, feeds).opset(19).within(2e-5));
        }
    }
    for policy in ["not_larger", "not_smaller"] {
        let text = format!(
            "y = Resize(x, , , n, mode=linear, axes=2,3, keep_aspect_ratio_policy={policy})"
        );
        let feeds = vec![("x", f32s(&[1, 2, 6, 8])), ("n", i64s(&[13, 9]))];
        cases.push(case(text, feeds).opset(19).within(2e-5));
    }
    let cropped = "y = Resize(x, r, , n, mode=linear, extrapolation_value=7.5, \
                   coordinate_transformation_mode=tf_crop_and_resize)";
    let roi = scales(&[0.0, 0.0, 0.2, 0.3, 1.0, 1.0, 0.8, 1.3]);
    let feeds = vec![("x", f32s(&[1, 2, 6, 8])), ("r", roi), ("n", i64s(&[1, 2, 7, 5]))];
    cases.push(case(cropped, feeds).opset(19).within(2e-5));
    let volume = vec![("x", f32s(&[1, 2, 4, 5, 6])), ("s", scales(&[1.0, 1.0, 2.0, 1.5, 2.0]))];
    cases.push(case("y = Resize(x, , s, mode=linear)", volume).within(2e-5));
    cases
}

fn samples() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in ["nearest", "linear", "cubic"] {
        for outside in ["zeros", "border", "reflection"] {
            for aligns in [0, 1] {
                let settings =
                    format!("mode={mode}, padding_mode={outside}, align_corners={aligns}");
                let grid: Vec<f32> =
                    f32s(&[2, 5, 4, 2]).slice::<f32>().iter().map(|x| x * 1.1).collect();
                let grid = Tensor::new(&[2, 5, 4, 2], &grid);
                let feeds = vec![("x", f32s(&[2, 3, 7, 6])), ("g", grid)];
                let text = format!("y = GridSample(x, g, {settings})");
                cases.push(case(text, feeds).opset(20).within(1e-5));
                if mode != "cubic" {
                    let feeds = vec![("x", f32s(&[1, 2, 3, 4, 5])), ("g", f32s(&[1, 2, 3, 4, 3]))];
                    let text = format!("y = GridSample(x, g, {settings})");
                    cases.push(case(text, feeds).opset(20).within(1e-5));
                }
            }
        }
    }
    for aligns in [0, 1] {
        let text = format!("y = AffineGrid(t, n, align_corners={aligns})");
        let plane = vec![("t", f32s(&[2, 2, 3])), ("n", i64s(&[2, 3, 5, 6]))];
        cases.push(case(&text, plane).opset(20));
        let volume = vec![("t", f32s(&[2, 3, 4])), ("n", i64s(&[2, 3, 4, 5, 6]))];
        cases.push(case(&text, volume).opset(20));
    }
    cases
}

fn regions() -> Vec<Case> {
    let mut cases = Vec::new();
    let boxes =
        Tensor::new(&[3, 4], &[0.0_f32, 0.0, 9.0, 7.0, 2.5, 1.5, 6.0, 8.5, -2.0, 3.0, 14.0, 5.0]);
    for transformation in ["half_pixel", "output_half_pixel"] {
        for settings in ["", ", sampling_ratio=2", ", spatial_scale=0.5"] {
            let text = format!(
                "y = RoiAlign(x, r, b, output_height=3, output_width=2, \
                 coordinate_transformation_mode={transformation}{settings})"
            );
            let feeds =
                vec![("x", f32s(&[2, 3, 9, 11])), ("r", boxes.clone()), ("b", i64s(&[0, 1, 1]))];
            cases.push(case(text, feeds).opset(16).within(1e-5));
        }
    }
    for (shape, sizes) in [(&[5, 8, 3][..], [4, 11, 3]), (&[2, 2, 9], [7, 1, 9])] {
        let feeds = vec![("x", f32s(shape)), ("n", i64s(&sizes))];
        cases.push(case("y = CenterCropPad(x, n)", feeds).opset(18).exact());
    }
    let feeds = vec![("x", bytes_u8(&[5, 8, 3])), ("n", i64s(&[9, 4]))];
    cases.push(case("y = CenterCropPad(x, n, axes=1,-3)", feeds).opset(18).exact());
    // (columns, image, block, settings)
    let blocks: &[(&[usize], &[i64], &[i64], &str)] = &[
        (&[1, 5, 5], &[5, 5], &[1, 5], ""),
        (&[2, 12, 25], &[6, 6], &[2, 2], ""),
        (&[1, 8, 9], &[5, 5], &[2, 2], ", strides=2,2, pads=1,0,0,1"),
        (&[1, 18, 4], &[6, 6], &[3, 3], ", dilations=2,2"),
    ];
    for (x, image, block, settings) in blocks {
        let feeds = vec![("x", f32s(x)), ("n", i64s(image)), ("k", i64s(block))];
        cases.push(case(format!("y = Col2Im(x, n, k{settings})"), feeds).opset(18));
    }
    cases
}

pub(crate) fn cases() -> Vec<Case> {
    [resizes(), samples(), regions()].into_iter().flatten().collect()
}
