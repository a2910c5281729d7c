//! `DequantizedGather`, made by fusion: rows picked from a table in 8 bits, each level times the
//! scale of its row.
//!
//! Inputs: levels (i8 or u8, [rows, size]), indices, and f32 scales, one for each row. Output: f32
//! [indices…, size], with the bits that `Cast` and `Mul` of picked rows and scales give.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::gather::picked_rows;
use crate::kernels::{for_rows, quantize};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct DequantizedGather;

impl Operator for DequantizedGather {
    fn op_type(&self) -> &'static str {
        "DequantizedGather"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (table, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let (Some([_, size]), Some(picked)) = (table.shape.as_deref(), &indices.shape) else {
            return Ok(vec![Fact::unranked(DType::F32)]);
        };
        let mut dims = picked.clone();
        dims.push(size.clone());
        Ok(vec![Fact::new(DType::F32, dims)])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(gather))
    }

    fn reads_in_place(&self, input: usize) -> bool {
        input == 0
    }
}

fn gather(run: &mut Run) -> Result<Vec<Tensor>, OpError> {
    let (table, indices, scales) = (run.input(0)?, run.input(1)?, run.typed::<f32>(2)?);
    let [rows, size] = *table.shape() else {
        return Err(OpError::value("the rank of the table", table.rank(), "2"));
    };
    if scales.element_count() != rows {
        return Err(OpError::shapes(table.shape(), scales.shape()));
    }
    let (picked, scales) = (picked_rows(indices, rows)?, scales.slice::<f32>());
    let mut y = run.pool.tensor(DType::F32, &[indices.shape(), &[size]].concat());
    let values = y.slice_mut::<f32>();
    match table.dtype() {
        DType::I8 => {
            let levels = table.slice::<i8>();
            each_row(values, size, &picked, |y, row| {
                quantize::dequantize_i8(y, &levels[row * size..][..size], scales[row], 0);
            });
        }
        DType::U8 => {
            let levels = table.slice::<u8>();
            each_row(values, size, &picked, |y, row| {
                quantize::dequantize_u8(y, &levels[row * size..][..size], scales[row], 0);
            });
        }
        found => return Err(OpError::DType { index: 0, found }),
    }
    Ok(vec![y])
}

fn each_row(
    values: &mut [f32],
    size: usize,
    picked: &[usize],
    work: impl Fn(&mut [f32], usize) + Send + Sync,
) {
    for_rows(values, size, |first, values| {
        let rows = values.chunks_exact_mut(size).zip(&picked[first..]);
        rows.for_each(|(values, &row)| work(values, row));
    });
}
