//! Channel binding `tls-server-end-point` (RFC 5929 §4.1).

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::der::{self, CONTEXT_0, Elements, OBJECT_IDENTIFIER};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Signature algorithms by their identifier's DER content. MD5 and SHA-1 are replaced by SHA-256, as the RFC says.
const SIGNATURES: &[(&[u8], Hash)] = &[
    // RSA with MD5, SHA-1, SHA-256, SHA-384, SHA-512, SHA-224: 1.2.840.113549.1.1.*
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 4], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 5], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 11], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 12], Hash::Sha384),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 13], Hash::Sha512),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 14], Hash::Sha224),
    // ECDSA with SHA-1, and with SHA-224 to SHA-512: 1.2.840.10045.4.*
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 1], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 1], Hash::Sha224),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2], Hash::Sha256),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 3], Hash::Sha384),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 4], Hash::Sha512),
];

/// RSASSA-PSS, whose hash is in its parameters (RFC 4055 §3.1).
const RSASSA_PSS: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 10];

/// Hash functions by their identifier's DER content: 2.16.840.1.101.3.4.2.*
const HASHES: &[(&[u8], Hash)] = &[
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1], Hash::Sha256),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2], Hash::Sha384),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3], Hash::Sha512),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 4], Hash::Sha224),
];

/// The certificate's hash by the function its own signature uses; `None` where that has none (Ed25519) or is unknown,
/// so that no binding is possible.
pub(super) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let mut algorithm = der::signature_algorithm(certificate)?;
    let identifier = algorithm.expect(OBJECT_IDENTIFIER)?;
    if identifier.content == RSASSA_PSS {
        return Some(
            algorithm
                .next()
                .and_then(|parameters| pss_hash(parameters.content))
                .unwrap_or(Hash::Sha256),
        );
    }
    lookup(SIGNATURES, identifier.content)
}

/// The hash of RSASSA-PSS parameters; `None` is the default SHA-1, which SHA-256 replaces.
fn pss_hash(parameters: &[u8]) -> Option<Hash> {
    let tagged = Elements(parameters).find(|element| element.tag == CONTEXT_0)?;
    lookup(HASHES, der::first_in_sequence(tagged.content)?.content)
}

fn lookup(table: &[(&[u8], Hash)], identifier: &[u8]) -> Option<Hash> {
    table
        .iter()
        .find(|(known, _)| *known == identifier)
        .map(|(_, hash)| *hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of which only the signature algorithm is filled in.
    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let sequence = |content: &[u8]| {
            let mut element = vec![0x30, u8::try_from(content.len()).unwrap()];
            element.extend(content);
            element
        };
        let mut parts = sequence(&[]);
        parts.extend(sequence(algorithm));
        sequence(&parts)
    }

    fn identifier(content: &[u8]) -> Vec<u8> {
        let mut element = vec![0x06, u8::try_from(content.len()).unwrap()];
        element.extend(content);
        element
    }

    #[test]
    fn each_signature_algorithm_has_its_hash() {
        for (id, hash) in SIGNATURES {
            assert_eq!(signature_hash(&certificate(&identifier(id))), Some(*hash));
        }
        let ed25519 = identifier(&[0x2B, 0x65, 0x70]);
        assert_eq!(server_end_point(&certificate(&ed25519)), None);
    }

    #[test]
    fn pss_takes_its_hash_from_the_parameters() {
        let with = |parameters: &[u8]| {
            let mut algorithm = identifier(RSASSA_PSS);
            algorithm.extend(parameters);
            signature_hash(&certificate(&algorithm))
        };
        assert_eq!(with(&[]), Some(Hash::Sha256));
        assert_eq!(with(&[0x30, 0]), Some(Hash::Sha256));
        for (id, hash) in HASHES {
            let id = identifier(id);
            let length = |extra: usize| u8::try_from(id.len() + extra).unwrap();
            let mut parameters = vec![0x30, length(4), 0xA0, length(2), 0x30, length(0)];
            parameters.extend(&id);
            assert_eq!(with(&parameters), Some(*hash));
        }
    }

    #[test]
    fn the_hash_covers_the_whole_certificate() {
        let sha384 = certificate(&identifier(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 3]));
        assert_eq!(
            server_end_point(&sha384).unwrap(),
            Sha384::digest(&sha384).to_vec()
        );
    }
}
