package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
)

// The index file is text: a line that names the format, a line per record, and
// a line with the CRC-32 of the lines before it.
//
//	vole-kernels 1
//	DEV INODE SIZE MTIME CTIME SHA256 VMLINUXSIZE VMLINUXMTIME
//	crc 89abcdef
//
// Numbers are decimal, times are nanoseconds since 1970. The newest record is
// last.
const (
	indexFormat  = "vole-kernels 1\n"
	indexTrailer = "crc "
	indexFields  = 8

	// maxRecords bounds the index; the oldest records go first.
	maxRecords = 64
	// maxIndex bounds what is read of an index file, in bytes.
	maxIndex = 64 << 10
)

// errIndex says that an index file is damaged. It then counts as empty.
var errIndex = errors.New("damaged index")

// digest is the SHA-256 of a kernel file.
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// fileKey tells whether a file is the one that was digested, without reading
// it. Times are nanoseconds since 1970.
type fileKey struct {
	dev, inode   uint64
	size         int64
	mtime, ctime int64
}

// record says that the kernel file with this key has this digest, and how the
// vmlinux of that digest looks from outside.
type record struct {
	key          fileKey
	digest       digest
	vmlinuxSize  int64
	vmlinuxMtime int64
}

// index is the cache's records, newest last.
type index struct {
	records []record
}

// find returns the record of a kernel file.
func (x *index) find(key fileKey) (record, bool) {
	i := slices.IndexFunc(x.records, func(r record) bool { return r.key == key })
	if i < 0 {
		return record{}, false
	}
	return x.records[i], true
}

// add puts r last. It replaces what was known of the same file, and all that
// was known of another vmlinux under the same digest.
func (x *index) add(r record) {
	x.records = slices.DeleteFunc(x.records, func(o record) bool {
		return o.key.dev == r.key.dev && o.key.inode == r.key.inode ||
			o.digest == r.digest && (o.vmlinuxSize != r.vmlinuxSize || o.vmlinuxMtime != r.vmlinuxMtime)
	})
	x.records = append(x.records, r)
	if n := len(x.records) - maxRecords; n > 0 {
		x.records = slices.Delete(x.records, 0, n)
	}
}

// trim drops the records of all but the keep newest digests.
func (x *index) trim(keep int) {
	kept := make(map[digest]bool, keep)
	for _, r := range slices.Backward(x.records) {
		if len(kept) < keep {
			kept[r.digest] = true
		}
	}
	x.records = slices.DeleteFunc(x.records, func(r record) bool { return !kept[r.digest] })
}

// encode returns the index as a file's contents.
func (x *index) encode() []byte {
	b := []byte(indexFormat)
	for _, r := range x.records {
		b = strconv.AppendUint(b, r.key.dev, 10)
		b = append(b, ' ')
		b = strconv.AppendUint(b, r.key.inode, 10)
		for _, v := range []int64{r.key.size, r.key.mtime, r.key.ctime} {
			b = append(b, ' ')
			b = strconv.AppendInt(b, v, 10)
		}
		b = append(b, ' ')
		b = hex.AppendEncode(b, r.digest[:])
		for _, v := range []int64{r.vmlinuxSize, r.vmlinuxMtime} {
			b = append(b, ' ')
			b = strconv.AppendInt(b, v, 10)
		}
		b = append(b, '\n')
	}
	return appendTrailer(b)
}

func appendTrailer(b []byte) []byte {
	return fmt.Appendf(b, indexTrailer+"%08x\n", crc32.ChecksumIEEE(b))
}

// parseIndex is the inverse of encode. Errors wrap errIndex.
func parseIndex(b []byte) (index, error) {
	if len(b) > maxIndex {
		return index{}, fmt.Errorf("%w: %d bytes", errIndex, len(b))
	}
	const trailer = len(indexTrailer) + 8 + 1
	if !bytes.HasPrefix(b, []byte(indexFormat)) || len(b) < len(indexFormat)+trailer {
		return index{}, fmt.Errorf("%w: not in the format that this version writes", errIndex)
	}
	body := b[:len(b)-trailer]
	if !bytes.Equal(b, appendTrailer(slices.Clone(body))) {
		return index{}, fmt.Errorf("%w: wrong checksum", errIndex)
	}
	var x index
	for line := range bytes.Lines(body[len(indexFormat):]) {
		r, err := parseRecord(bytes.Fields(line))
		if err != nil {
			return index{}, fmt.Errorf("%w: record %d: %w", errIndex, len(x.records), err)
		}
		if len(x.records) == maxRecords {
			return index{}, fmt.Errorf("%w: more than %d records", errIndex, maxRecords)
		}
		x.records = append(x.records, r)
	}
	return x, nil
}

func parseRecord(fields [][]byte) (record, error) {
	if len(fields) != indexFields {
		return record{}, fmt.Errorf("%d fields, want %d", len(fields), indexFields)
	}
	var r record
	var err error
	number := func(field int) int64 {
		v, e := strconv.ParseInt(string(fields[field]), 10, 64)
		if e != nil && err == nil {
			err = e
		}
		return v
	}
	unsigned := func(field int) uint64 {
		v, e := strconv.ParseUint(string(fields[field]), 10, 64)
		if e != nil && err == nil {
			err = e
		}
		return v
	}
	r.key = fileKey{dev: unsigned(0), inode: unsigned(1), size: number(2), mtime: number(3), ctime: number(4)}
	r.vmlinuxSize, r.vmlinuxMtime = number(6), number(7)
	if err != nil {
		return record{}, err
	}
	if len(fields[5]) != hex.EncodedLen(len(r.digest)) {
		return record{}, fmt.Errorf("a digest of %d characters", len(fields[5]))
	}
	if _, err := hex.Decode(r.digest[:], fields[5]); err != nil {
		return record{}, err
	}
	return r, nil
}
