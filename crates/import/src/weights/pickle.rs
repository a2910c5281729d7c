//! The part of Python's pickle that saved tensors need, read as data.
//!
//! A pickle is a program for a stack machine that can call any function. This machine knows a
//! dozen names and calls none of them: it notes what each would make. Objects live in one list and
//! refer to each other by index, so deep or cyclic nesting costs neither stack nor leaks.

use std::collections::HashMap;

use attar_tensor::DType;

/// Index of an object in [`Pickle::objects`].
pub(super) type Ref = usize;

/// What a pickle describes.
pub(super) struct Pickle<'a> {
    pub(super) objects: Vec<Object<'a>>,
    pub(super) root: Ref,
    pub(super) size_bytes: usize,
}

pub(super) enum Object<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float,
    Text(&'a str),
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    Global(Global),
    Storage(StorageId<'a>),
    Tensor(TensorId),
}

/// A block of numbers kept outside of the pickle.
#[derive(Clone, Copy)]
pub(super) struct StorageId<'a> {
    pub(super) key: &'a str,
    pub(super) dtype: DType,
}

/// A view of a storage, in elements.
pub(super) struct TensorId {
    pub(super) storage: Ref,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

#[derive(Clone, Copy)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(DType),
}

/// Every name a pickle may use.
const GLOBALS: [(&str, &str, Global); 13] = [
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("torch", "FloatStorage", Global::Storage(DType::F32)),
    ("torch", "DoubleStorage", Global::Storage(DType::F64)),
    ("torch", "HalfStorage", Global::Storage(DType::F16)),
    ("torch", "BFloat16Storage", Global::Storage(DType::BF16)),
    ("torch", "LongStorage", Global::Storage(DType::I64)),
    ("torch", "IntStorage", Global::Storage(DType::I32)),
    ("torch", "ShortStorage", Global::Storage(DType::I16)),
    ("torch", "CharStorage", Global::Storage(DType::I8)),
    ("torch", "ByteStorage", Global::Storage(DType::U8)),
    ("torch", "BoolStorage", Global::Storage(DType::Bool)),
];

/// Objects, stack entries and memo entries beyond which a pickle is refused. A state dict needs
/// about forty of each per tensor.
const COUNT_MAX: usize = 1 << 20;

/// Axes of a tensor beyond which a pickle is refused. Weights have five at most.
const RANK_MAX: usize = 8;

pub(super) enum PickleError {
    /// Not a pickle, or one that saving tensors does not write.
    Malformed(String),
    /// A name outside of the table.
    Forbidden(String),
}

type Result<T> = std::result::Result<T, PickleError>;

fn malformed<T>(reason: impl Into<String>) -> Result<T> {
    Err(PickleError::Malformed(reason.into()))
}

/// Reads the pickle that `bytes` begin with.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>> {
    let mut machine = Machine { rest: bytes, ..Machine::default() };
    loop {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            let root = machine.pop()?;
            let size_bytes = bytes.len() - machine.rest.len();
            return Ok(Pickle { objects: machine.objects, root, size_bytes });
        }
        machine.step(opcode)?;
    }
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    objects: Vec<Object<'a>>,
    stack: Vec<Ref>,
    /// Heights of the stack at which lists of arguments begin.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // PROTO, FRAME
            0x80 if self.byte()? > 5 => malformed("it is of a protocol above 5"),
            0x80 => Ok(()),
            0x95 => self.take(8).map(|_| ()),
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, BINFLOAT
            b'J' => self.int::<4>(true),
            b'K' => self.int::<1>(false),
            b'M' => self.int::<2>(false),
            0x8a => self.long(),
            b'G' => self.take(8).and_then(|_| self.push(Object::Float)),
            // SHORT_BINUNICODE, BINUNICODE; SHORT_BINSTRING and BINSTRING from Python 2
            0x8c | b'U' => self.byte().and_then(|size| self.text(size as usize)),
            b'X' | b'T' => self.size4().and_then(|size| self.text(size)),
            // MARK, BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'(' => self.mark(),
            b'q' => self.byte().and_then(|key| self.remember(key as u32)),
            b'r' => self.size4().and_then(|key| self.remember(key as u32)),
            0x94 => self.remember(self.memo.len() as u32),
            b'h' => self.byte().and_then(|key| self.recall(key as u32)),
            b'j' => self.size4().and_then(|key| self.recall(key as u32)),
            // GLOBAL, STACK_GLOBAL, REDUCE, BUILD, BINPERSID
            b'c' => self.global(),
            0x93 => self.stack_global(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            b'Q' => self.persistent(),
            _ => self.container(opcode),
        }
    }

    /// Tuples, lists and dicts.
    fn container(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push(Object::Tuple(Vec::new())),
            0x85..=0x87 => {
                let count = (opcode - 0x84) as usize;
                let items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                self.push(Object::Tuple(items.into_iter().rev().collect()))
            }
            b't' => self.since_mark().and_then(|items| self.push(Object::Tuple(items))),
            // EMPTY_LIST, APPEND, APPENDS
            b']' => self.push(Object::List(Vec::new())),
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' => self.since_mark().and_then(|items| self.append(items)),
            // EMPTY_DICT, SETITEM, SETITEMS
            b'}' => self.push(Object::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])
            }
            b'u' => self.since_mark().and_then(|items| self.set(&items)),
            _ => malformed(format!("opcode {opcode:#04x} is not among those that save tensors")),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return malformed("the pickle ends early");
        };
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn size4(&mut self) -> Result<usize> {
        let bytes = self.take(4)?.try_into().expect("four bytes were taken");
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    fn line(&mut self) -> Result<&'a str> {
        let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') else {
            return malformed("the pickle ends early");
        };
        let line = self.take(end + 1)?;
        utf8(&line[..end])
    }

    fn push(&mut self, object: Object<'a>) -> Result<()> {
        self.objects.push(object);
        self.push_ref(self.objects.len() - 1)
    }

    fn push_ref(&mut self, index: Ref) -> Result<()> {
        if self.objects.len().max(self.stack.len()).max(self.memo.len()) > COUNT_MAX {
            return malformed(format!("it makes more than {COUNT_MAX} objects"));
        }
        self.stack.push(index);
        Ok(())
    }

    fn pop(&mut self) -> Result<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return malformed("it takes from an empty stack");
        }
        Ok(self.stack.pop().expect("the stack is higher than its floor"))
    }

    fn top(&mut self) -> Result<Ref> {
        let top = self.pop()?;
        self.stack.push(top);
        Ok(top)
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() > COUNT_MAX {
            return malformed(format!("it sets more than {COUNT_MAX} marks"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn since_mark(&mut self) -> Result<Vec<Ref>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => malformed("it misses a mark"),
        }
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        match self.memo.get(&key) {
            Some(&index) => self.push_ref(index),
            None => malformed(format!("it recalls {key}, which it never stored")),
        }
    }

    fn int<const SIZE: usize>(&mut self, is_signed: bool) -> Result<()> {
        let bytes = self.take(SIZE)?;
        self.push(Object::Int(little_endian(bytes, is_signed)))
    }

    fn long(&mut self) -> Result<()> {
        let size = self.byte()? as usize;
        if size > 16 {
            return malformed(format!("an integer has {size} bytes"));
        }
        let bytes = self.take(size)?;
        self.push(Object::Int(little_endian(bytes, true)))
    }

    fn text(&mut self, size: usize) -> Result<()> {
        let text = utf8(self.take(size)?)?;
        self.push(Object::Text(text))
    }

    fn append(&mut self, items: Vec<Ref>) -> Result<()> {
        let list = self.top()?;
        match &mut self.objects[list] {
            Object::List(list) => list.extend(items),
            _ => return malformed("it appends to what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Ref]) -> Result<()> {
        let dict = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return malformed("a key of a dict has no value");
        };
        match &mut self.objects[dict] {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return malformed("it sets items of what is no dict"),
        }
        Ok(())
    }

    fn global(&mut self) -> Result<()> {
        let (module, name) = (self.line()?, self.line()?);
        self.push_global(module, name)
    }

    fn stack_global(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.objects[module], &self.objects[name]) {
            (&Object::Text(module), &Object::Text(name)) => self.push_global(module, name),
            _ => malformed("the name of a global is no text"),
        }
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        match GLOBALS.iter().find(|global| (global.0, global.1) == (module, name)) {
            Some(&(_, _, global)) => self.push(Object::Global(global)),
            None => Err(PickleError::Forbidden(format!("{module}.{name}"))),
        }
    }

    /// Notes what calling a global would make.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Object::Tuple(arguments) = &self.objects[arguments] else {
            return malformed("the arguments of a call are no tuple");
        };
        match (&self.objects[function], arguments.as_slice()) {
            (Object::Global(Global::OrderedDict), []) => self.push(Object::Dict(Vec::new())),
            (Object::Global(Global::RebuildTensor), &[storage, offset, shape, strides, ..]) => {
                let tensor = TensorId {
                    storage,
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                };
                self.push(Object::Tensor(tensor))
            }
            // A parameter is its tensor and what training needs to know of it.
            (Object::Global(Global::RebuildParameter), &[tensor, ..]) => self.push_ref(tensor),
            _ => malformed("it calls what is no function, or with other arguments"),
        }
    }

    /// State set on an object; saved models have only `_metadata` on their ordered dict.
    fn build(&mut self) -> Result<()> {
        let (state, object) = (self.pop()?, self.top()?);
        match (&self.objects[object], &self.objects[state]) {
            (Object::Dict(_), Object::Dict(_)) => Ok(()),
            _ => malformed("it sets the state of what is no dict"),
        }
    }

    /// `('storage', type, key, location, size)`, and before version 1.6 a view that nobody uses.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let object = |index: Ref| &self.objects[index];
        if let Object::Tuple(items) = object(id)
            && let &[kind, dtype, key, _, _, ref view @ ..] = items.as_slice()
            && let (Object::Text("storage"), Object::Global(Global::Storage(dtype))) =
                (object(kind), object(dtype))
            && let Object::Text(key) = object(key)
            && view.iter().all(|&view| matches!(object(view), Object::None))
        {
            let storage = StorageId { key, dtype: *dtype };
            return self.push(Object::Storage(storage));
        }
        malformed("a persistent id is no storage")
    }

    fn size(&self, index: Ref) -> Result<usize> {
        match &self.objects[index] {
            Object::Int(value) => usize::try_from(*value)
                .or_else(|_| malformed(format!("{value} stands where a size belongs"))),
            _ => malformed("a size is no integer"),
        }
    }

    fn sizes(&self, index: Ref) -> Result<Vec<usize>> {
        match &self.objects[index] {
            // A shape can be recalled from the memo for two bytes, and is copied each time.
            Object::Tuple(items) if items.len() > RANK_MAX => {
                malformed(format!("a tensor has more than {RANK_MAX} axes"))
            }
            Object::Tuple(items) => items.iter().map(|&item| self.size(item)).collect(),
            _ => malformed("a shape is no tuple"),
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).or_else(|_| malformed("a text is not UTF-8"))
}

/// At most 16 bytes as an integer.
fn little_endian(bytes: &[u8], is_signed: bool) -> i128 {
    let is_negative = is_signed && bytes.last().is_some_and(|&last| last >= 0x80);
    let mut all = [if is_negative { 0xff } else { 0 }; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    i128::from_le_bytes(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        match read(bytes) {
            Ok(_) => "no error".into(),
            Err(PickleError::Malformed(reason)) => reason,
            Err(PickleError::Forbidden(global)) => format!("forbidden: {global}"),
        }
    }

    #[test]
    fn names_outside_of_the_table_are_refused() {
        assert_eq!(error(b"cos\nsystem\n(X\x02\x00\x00\x00idtR."), "forbidden: os.system");
        assert_eq!(error(b"\x8c\x02os\x8c\x06system\x93."), "forbidden: os.system");
        // A dotted name walks from an allowed module to another one.
        assert_eq!(error(b"ctorch\n_utils.os.system\n."), "forbidden: torch._utils.os.system");
        // INST, OBJ, NEWOBJ and EXT1 call too.
        for opcode in [b'i', b'o', 0x81, 0x82] {
            assert!(error(&[opcode]).contains("is not among those"));
        }
    }

    #[test]
    fn damaged_programs_are_errors() {
        assert_eq!(error(b""), "the pickle ends early");
        assert_eq!(error(b"X\xff\xff\xff\xffa"), "the pickle ends early");
        assert_eq!(error(b"."), "it takes from an empty stack");
        assert_eq!(error(b"K\x01(\x85."), "it takes from an empty stack");
        assert_eq!(error(b"h\x05."), "it recalls 5, which it never stored");
        assert_eq!(error(b"t."), "it misses a mark");
        assert_eq!(error(b"}K\x01a."), "it appends to what is no list");
        assert_eq!(error(b"\x8a\x11"), "an integer has 17 bytes");
        assert_eq!(error(b"\x80\x09."), "it is of a protocol above 5");
        assert_eq!(error(b"K\x01Q."), "a persistent id is no storage");
        assert_eq!(
            error(b"ctorch\nFloatStorage\n)R."),
            "it calls what is no function, or with other arguments"
        );
    }

    #[test]
    fn nesting_and_growth_are_bounded() {
        // A million tuples in one another would overflow the stack of a recursive reader.
        let mut deep = b")".to_vec();
        deep.extend(std::iter::repeat_n(0x85, 1_000_000));
        deep.push(b'.');
        assert_eq!(error(&deep), "no error");
        let many = vec![b'N'; COUNT_MAX + 2];
        assert!(error(&many).contains("makes more than"));
        let mut recalls = b"Nq\x00".to_vec();
        recalls.extend(b"h\x00".repeat(COUNT_MAX + 2));
        assert!(error(&recalls).contains("makes more than"));
    }

    #[test]
    fn integers_of_every_width_keep_their_sign() {
        let root = |bytes: &[u8]| {
            let Ok(pickle) = read(bytes) else { panic!("no pickle") };
            match pickle.objects[pickle.root] {
                Object::Int(value) => value,
                _ => panic!("no integer"),
            }
        };
        assert_eq!(root(b"J\xff\xff\xff\xff."), -1);
        assert_eq!(root(b"K\xff."), 255);
        assert_eq!(root(b"M\xff\xff."), 65535);
        assert_eq!(root(b"\x8a\x02\x00\x80."), -32768);
        assert_eq!(root(b"\x8a\x00."), 0);
    }
}
