//! What a kernel is given when it runs: its inputs, and buffers to put results in.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use attar_tensor::{Buffer, DType, Element, Tensor, element_count};

use crate::{Datum, OpError};

/// Free buffers, kept so that a warmed-up model allocates nothing.
#[derive(Default)]
pub struct Pool {
    free: Mutex<Vec<Buffer>>,
    allocated_bytes: AtomicUsize,
}

/// Buffers kept at most; beyond, the smallest are returned to the allocator.
const FREE_MAX: usize = 256;

/// Sizes in bytes from which on an allocation is tried before it is made.
const PROBED_MIN: usize = 1 << 28;

impl Pool {
    /// A tensor with arbitrary content.
    pub fn tensor(&self, dtype: DType, shape: &[usize]) -> Tensor {
        let count = element_count(shape).expect("shapes of running values are addressable");
        let size = dtype.size_bytes(count).expect("shapes of running values are addressable");
        Tensor::from_buffer(dtype, shape, self.buffer(size))
    }

    /// A tensor with arbitrary content, of a shape that a model asks for by numbers.
    ///
    /// # Errors
    /// A shape that memory does not hold. Names it.
    pub fn declared(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, OpError> {
        let error = || OpError::value("the shape", shape, format!("{dtype} that memory can hold"));
        let size = element_count(shape).and_then(|count| dtype.size_bytes(count));
        let size = size.filter(|&size| size <= isize::MAX as usize / 2).ok_or_else(error)?;
        if size > PROBED_MIN {
            // An allocation that fails ends the process; one that is tried first does not.
            let mut probe: Vec<u8> = Vec::new();
            probe.try_reserve_exact(size).map_err(|_| error())?;
            std::hint::black_box(&probe);
        }
        Ok(self.tensor(dtype, shape))
    }

    /// A buffer with arbitrary content: the smallest free one that fits.
    pub fn buffer(&self, size_bytes: usize) -> Buffer {
        let mut free = self.free.lock().expect("no kernel panics while it holds the pool");
        let fitting = free
            .iter()
            .enumerate()
            .filter(|(_, buffer)| buffer.capacity_bytes() >= size_bytes)
            .min_by_key(|(_, buffer)| buffer.capacity_bytes())
            .map(|(index, _)| index);
        // A far larger buffer is left for the value that needs it.
        let fitting =
            fitting.filter(|&index| free[index].capacity_bytes() / 8 <= size_bytes.max(512));
        if let Some(index) = fitting {
            let mut buffer = free.swap_remove(index);
            drop(free);
            buffer.resize(size_bytes);
            buffer
        } else {
            drop(free);
            self.allocated_bytes.fetch_add(size_bytes, Ordering::Relaxed);
            Buffer::zeroed(size_bytes)
        }
    }

    /// Bytes asked of the allocator so far. Buffers come back and are handed out again, so once a
    /// graph has run this is what its runs hold at their peak.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Takes back the buffer of a tensor that nothing else holds.
    pub fn recycle(&self, tensor: Tensor) {
        if let Some(buffer) = tensor.into_buffer() {
            self.recycle_buffer(buffer);
        }
    }

    /// Takes back what a value held.
    pub fn recycle_datum(&self, datum: Datum) {
        match datum {
            Datum::Tensor(tensor) => self.recycle(tensor),
            Datum::Sequence(tensors) => tensors.into_iter().for_each(|tensor| self.recycle(tensor)),
            Datum::Empty => {}
        }
    }

    pub fn recycle_buffer(&self, buffer: Buffer) {
        let mut free = self.free.lock().expect("no kernel panics while it holds the pool");
        free.push(buffer);
        if free.len() > FREE_MAX {
            let smallest = (0..free.len()).min_by_key(|&index| free[index].capacity_bytes());
            smallest.map(|index| free.swap_remove(index));
        }
    }
}

/// One run of one kernel.
pub struct Run<'a> {
    /// The inputs; `None` where an optional one is absent. A value that dies here is not shared,
    /// so taking it gives a tensor that can be written in place.
    pub inputs: Vec<Option<Tensor>>,
    pub pool: &'a Pool,
}

/// Outputs larger than this are asked of the allocator first, since their size may be a hostile
/// attribute's.
const UNASKED_MAX_BYTES: usize = 1 << 30;

impl Run<'_> {
    /// A tensor with arbitrary content whose shape attributes or inputs have a say in.
    ///
    /// # Errors
    /// A shape that memory does not hold.
    pub fn output(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, OpError> {
        let size = element_count(shape).and_then(|count| dtype.size_bytes(count));
        let fits = size.filter(|&size| isize::try_from(size).is_ok()).is_some_and(|size| {
            size <= UNASKED_MAX_BYTES || Vec::<u8>::new().try_reserve_exact(size).is_ok()
        });
        if !fits {
            return Err(OpError::value("the output's shape", shape, "one that memory holds"));
        }
        Ok(self.pool.tensor(dtype, shape))
    }

    /// # Errors
    /// When the input is absent.
    pub fn input(&self, index: usize) -> Result<&Tensor, OpError> {
        self.optional(index).ok_or(OpError::MissingInput { index })
    }

    pub fn optional(&self, index: usize) -> Option<&Tensor> {
        self.inputs.get(index).and_then(Option::as_ref)
    }

    /// The input, if it is there and has the type.
    ///
    /// # Errors
    /// When it is absent or of another type.
    pub fn typed<T: Element>(&self, index: usize) -> Result<&Tensor, OpError> {
        let tensor = self.input(index)?;
        if T::views(tensor.dtype()) {
            return Ok(tensor);
        }
        Err(OpError::DType { index, found: tensor.dtype() })
    }

    /// The input as a tensor to write into: itself if it dies here, else `None`.
    pub fn take_unique(&mut self, index: usize) -> Option<Tensor> {
        let slot = self.inputs.get_mut(index)?;
        if slot.as_ref().is_some_and(Tensor::is_unique) { slot.take() } else { None }
    }
}

/// A node made ready: attributes read, constants packed.
pub trait Kernel: Send + Sync {
    /// Computes the outputs, in the node's order.
    ///
    /// # Errors
    /// Inputs whose types or shapes the operator does not take.
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError>;
}

impl<F> Kernel for F
where
    F: Fn(&mut Run) -> Result<Vec<Tensor>, OpError> + Send + Sync,
{
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        self(run)
    }
}

/// One run of one kernel over more than tensors.
pub struct DataRun<'a> {
    /// The node's own inputs, `None` where an optional one is absent; then what its bodies capture.
    pub inputs: Vec<Option<Datum>>,
    pub pool: &'a Pool,
}

impl DataRun<'_> {
    pub fn optional(&self, index: usize) -> Option<&Datum> {
        self.inputs.get(index).and_then(Option::as_ref)
    }

    /// # Errors
    /// When the input is absent.
    pub fn input(&self, index: usize) -> Result<&Datum, OpError> {
        self.optional(index).ok_or(OpError::MissingInput { index })
    }

    /// # Errors
    /// When the input is absent or no tensor.
    pub fn tensor(&self, index: usize) -> Result<&Tensor, OpError> {
        let datum = self.input(index)?;
        let error = || OpError::value(&format!("input {index}"), datum.kind(), "a tensor");
        datum.tensor().ok_or_else(error)
    }

    /// # Errors
    /// When the input is absent or no sequence.
    pub fn sequence(&self, index: usize) -> Result<&[Tensor], OpError> {
        match self.input(index)? {
            Datum::Sequence(tensors) => Ok(tensors),
            other => Err(OpError::value(&format!("input {index}"), other.kind(), "a sequence")),
        }
    }
}

/// A node of an operator over sequences, optionals or bodies, made ready.
pub trait DataKernel: Send + Sync {
    /// Computes the outputs, in the node's order.
    ///
    /// # Errors
    /// Inputs that the operator does not take, or what a node of a body says.
    fn run(&self, run: &mut DataRun) -> Result<Vec<Datum>, OpError>;
}

impl<F> DataKernel for F
where
    F: Fn(&mut DataRun) -> Result<Vec<Datum>, OpError> + Send + Sync,
{
    fn run(&self, run: &mut DataRun) -> Result<Vec<Datum>, OpError> {
        self(run)
    }
}
