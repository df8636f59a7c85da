package initramfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// Bounds on what one module may take, in bytes. The largest modules (amdgpu
// with debug information stripped) have about 30 MiB.
const (
	maxModule = 256 << 20
	maxWindow = 64 << 20
)

var errTooLarge = errors.New("it is too large")

// Read returns the bytes of a module, decompressed as its file's suffix says
// (.gz, .xz, .zst or none). It fails with ErrModule if they are not an ELF
// object, or more than 256 MiB.
func (d *ModuleDir) Read(m Module) ([]byte, error) {
	f, err := d.fsys.Open(m.Path)
	if err != nil {
		return nil, d.fail("%w", err)
	}
	defer f.Close()
	data, err := decompress(path.Ext(m.Path), f, maxModule)
	if err != nil {
		return nil, d.fail("%s: %w: %w", m.Path, ErrModule, err)
	}
	if !bytes.HasPrefix(data, []byte(elfMagic)) {
		return nil, d.fail("%s: %w: it does not begin like an ELF object", m.Path, ErrModule)
	}
	return data, nil
}

// decompress reads all of r, at most max bytes of output.
func decompress(suffix string, r io.Reader, max int64) ([]byte, error) {
	switch suffix {
	case ".gz":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = z
	case ".xz":
		z, err := xz.NewReader(r, maxWindow)
		if err != nil {
			return nil, err
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	}
	return readAllMax(r, max)
}

// readAllMax is io.ReadAll with a bound.
func readAllMax(r io.Reader, max int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%w: more than %d bytes", errTooLarge, max)
	}
	return data, nil
}
