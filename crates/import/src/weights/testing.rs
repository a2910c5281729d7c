//! Files as `torch.save` writes them, made for tests.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn tuple(sizes: &[u32]) -> Vec<u8> {
    let items: Vec<u8> =
        sizes.iter().flat_map(|size| [b"J", &size.to_le_bytes()[..]].concat()).collect();
    [b"(", items.as_slice(), b"t"].concat()
}

/// The pickle of a state dict with one f32 tensor in storage `7`.
fn pickle(name: &str, shape: &[u32], strides: &[u32], offset: u32, id_end: &[u8]) -> Vec<u8> {
    [
        b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(",
        text(name).as_slice(),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("7"),
        &text("cpu"),
        b"K\x05",
        id_end,
        b"tQJ",
        &offset.to_le_bytes(),
        &tuple(shape),
        &tuple(strides),
        b"\x89h\x00)RtRu}X\x09\x00\x00\x00_metadatah\x00)Rsb.",
    ]
    .concat()
}

pub(crate) fn zip_file(
    name: &str,
    shape: &[u32],
    strides: &[u32],
    offset: u32,
    storage: &[u8],
) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let pickle = pickle(name, shape, strides, offset, b"");
    for (entry, data) in
        [("data.pkl", pickle.as_slice()), ("byteorder", b"little"), ("data/7", storage)]
    {
        writer.start_file(format!("archive/{entry}"), stored).unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub(crate) fn legacy_file(
    name: &str,
    shape: &[u32],
    strides: &[u32],
    offset: u32,
    storage: &[u8],
) -> Vec<u8> {
    [
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}(",
        text("little_endian").as_slice(),
        b"\x88u.",
        &pickle(name, shape, strides, offset, b"N"),
        b"\x80\x02](",
        &text("7"),
        b"e.",
        &(storage.len() as u64 / 4).to_le_bytes(),
        storage,
    ]
    .concat()
}
