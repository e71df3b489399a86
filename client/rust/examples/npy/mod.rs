//! Reads numpy's .npy files, as far as the digits need it.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// The bytes of an array of uint8 in C order.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = std::fs::read(path).map_err(|error| Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let wrong = || Error::new(ErrorKind::InvalidData, format!("{} is no array of uint8 in C order", path.display()));
    let size: [u8; 2] = file.get(8..10).and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
    let end = 10 + usize::from(u16::from_le_bytes(size));
    let header = String::from_utf8_lossy(file.get(10..end).ok_or_else(wrong)?);
    if header.contains("'|u1'") && header.contains("'fortran_order': False") {
        Ok(file[end..].to_vec())
    } else {
        Err(wrong())
    }
}
