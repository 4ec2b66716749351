//! A server's certificate, of which a little is read before anything about it is known to be true.

use cdc_postgres::certificate_parts;

use crate::limit::within;

/// Nothing is copied but a hash.
const MOST_BYTES: usize = 1 << 10;

pub(crate) fn run(bytes: &[u8]) {
    within(MOST_BYTES, || {
        let (hash, key) = certificate_parts(bytes);
        assert!(hash.is_none_or(|hash| (28..=64).contains(&hash.len())));
        let lies = |key: &[u8]| bytes.as_ptr_range().contains(&key.as_ptr()) && key.len() <= bytes.len();
        assert!(key.is_none_or(lies));
    });
}

/// An element of DER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let header = match u8::try_from(length) {
        Ok(short) if short < 0x80 => vec![tag, short],
        Ok(byte) => vec![tag, 0x81, byte],
        Err(_) => [&[tag, 0x82][..], &(length as u16).to_be_bytes()].concat(),
    };
    [&header, content].concat()
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    element(0x30, &parts.concat())
}

/// With that signature algorithm, the rest filled with what has the right tags.
fn certificate(algorithm: &[u8], version: &[u8]) -> Vec<u8> {
    let empty = || sequence(&[]);
    let body = [
        version.to_vec(),
        element(0x02, &[7]),
        empty(),
        empty(),
        empty(),
        empty(),
        sequence(&[empty(), element(0x03, &[0; 200])]),
    ];
    sequence(&[
        sequence(&body),
        element(0x30, algorithm),
        element(0x03, &[0; 300]),
    ])
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let sha256_with_rsa = element(0x06, &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 11]);
    let sha384 = sequence(&[element(0x06, &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2])]);
    let pss = [
        element(0x06, &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 10]),
        sequence(&[element(0xA0, &sha384)]),
    ];
    let ed25519 = element(0x06, &[0x2B, 0x65, 0x70]);
    let version = element(0xA0, &element(0x02, &[2]));
    vec![
        ("ed25519", certificate(&ed25519, &version)),
        ("pss", certificate(&pss.concat(), &version)),
        ("rsa", certificate(&sha256_with_rsa, &version)),
        ("version-1", certificate(&sha256_with_rsa, &[])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_have_what_is_read() {
        for (name, seed) in seeds() {
            let (hash, key) = certificate_parts(&seed);
            let bytes = [
                ("ed25519", None),
                ("pss", Some(48)),
                ("rsa", Some(32)),
                ("version-1", Some(32)),
            ];
            let expected = bytes.iter().find(|(known, _)| *known == name).unwrap().1;
            assert_eq!(hash.map(|hash| hash.len()), expected, "{name}");
            assert!(key.is_some(), "{name}");
        }
    }
}
