//! The gradient of operators that only move elements, whatever the pattern: their kernel is run
//! once more, over the numbers of the elements in place of their values, and tells where each came
//! from. Operators with a faster way have it in their own files.

use attar_tensor::{DType, Tensor, element_count};

use crate::gradient::gradient;
use crate::{Backward, Flow, Gradient, Kernel, OpError, Reads, Run};

/// dx[i] = Σ dy[j] over the places j that element i went to. `moved` names the inputs whose
/// elements are moved, all others are settings.
pub(crate) fn moved_gradient(
    kernel: Box<dyn Kernel>,
    moved: fn(usize) -> bool,
    input_count: usize,
) -> Result<Box<dyn Gradient>, OpError> {
    let settings = (0..input_count).filter(|&index| !moved(index));
    let reads = settings.fold(Reads::NOTHING, Reads::input);
    gradient(reads, move |run| {
        let dy = run.take_gradient();
        let (inputs, starts) = numbered(run, moved)?;
        let mut numbers = Run { inputs, pool: run.pool };
        let sources = kernel.run(&mut numbers)?.swap_remove(0);
        let total = starts.last().map_or(0, |&(_, end)| end);
        // Number 0 is that of what came from no input.
        let mut sums = run.zeros(&[total + 1]);
        let sum = sums.slice_mut::<f32>();
        for (&source, &dy) in sources.slice::<u32>().iter().zip(dy.slice::<f32>()) {
            sum[source as usize] += dy;
        }
        let flows = starts.iter().enumerate().map(|(index, &(start, end))| {
            (moved(index) && run.wants(index)).then(|| {
                let mut dx = run.tensor(run.shape(index));
                dx.slice_mut::<f32>().copy_from_slice(&sums.slice::<f32>()[start + 1..=end]);
                Flow::from(dx)
            })
        });
        let flows = flows.collect();
        [dy, sources, sums].into_iter().for_each(|tensor| run.pool.recycle(tensor));
        Ok(flows)
    })
}

/// The inputs, the moved ones with their elements numbered through from 1; and for each input, how
/// many elements were numbered before it and with it.
type Numbered = (Vec<Option<Tensor>>, Vec<(usize, usize)>);

fn numbered(run: &Backward, moved: fn(usize) -> bool) -> Result<Numbered, OpError> {
    let (mut inputs, mut starts, mut count) = (Vec::new(), Vec::new(), 0);
    for (index, shape) in run.shapes.iter().enumerate() {
        let start = count;
        if moved(index) {
            count += element_count(shape).expect("the shape of a value that was");
            if u32::try_from(count).is_err() {
                let what = "the gradient of a move of more than 2³² elements".into();
                return Err(OpError::Unsupported { what });
            }
            let mut numbers = run.pool.tensor(DType::U32, shape);
            let elements = numbers.slice_mut::<u32>().iter_mut();
            elements.zip(start as u32 + 1..).for_each(|(element, number)| *element = number);
            inputs.push(Some(numbers));
        } else {
            inputs.push(run.inputs.get(index).cloned().flatten());
        }
        starts.push((start, count));
    }
    Ok((inputs, starts))
}
