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

// Bounds on what modules may take, in bytes. The largest ones (amdgpu with debug
// information stripped) have about 30 MiB, and are packed with windows of at most
// minWindow.
const (
	maxModule   = 256 << 20
	maxSelected = 512 << 20
	maxReading  = 3 * maxModule
	maxWindow   = 64 << 20
	minWindow   = 8 << 20
)

// bounds are on what modules may have, decompressed, in bytes.
type bounds struct {
	module   int64 // one of them
	selected int64 // all that one archive takes
	reading  int64 // those that are read at the same time
}

var errTooLarge = errors.New("it is too large")

// Read returns the bytes of a module, decompressed as its file's suffix says
// (.gz, .xz, .zst or none). It fails with ErrModule if they are not an ELF
// object, or more than 256 MiB.
func (d *ModuleDir) Read(m Module) ([]byte, error) {
	return d.read(m, d.bounds.module, maxWindow)
}

// read is Read with other bounds, those of decompress.
func (d *ModuleDir) read(m Module, max, window int64) ([]byte, error) {
	f, err := d.fsys.Open(m.Path)
	if err != nil {
		return nil, d.fail("%w", err)
	}
	defer f.Close()
	data, err := decompress(path.Ext(m.Path), f, max, window)
	if err != nil {
		return nil, d.fail("%s: %w: %w", m.Path, ErrModule, err)
	}
	if !bytes.HasPrefix(data, []byte(elfMagic)) {
		return nil, d.fail("%s: %w: it does not begin like an ELF object", m.Path, ErrModule)
	}
	return data, nil
}

// readSelected is Read for one of several modules that are kept, of which left is how much
// the rest may have; it takes from that.
func (d *ModuleDir) readSelected(m Module, left *int64) ([]byte, error) {
	data, err := d.read(m, min(*left, d.bounds.module), maxWindow)
	if errors.Is(err, errTooLarge) && *left < d.bounds.module {
		return nil, d.fail("%s: %w: %w: with it the modules that are selected have more than %d bytes", m.Path, ErrModule, errTooLarge, d.bounds.selected)
	}
	*left -= int64(len(data))
	return data, err
}

// decompress reads all of r, at most max bytes of output, with no more than window
// bytes of what was decompressed before.
func decompress(suffix string, r io.Reader, max, window int64) ([]byte, error) {
	switch suffix {
	case ".gz":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		r = z
	case ".xz":
		z, err := xz.NewReader(r, uint32(window))
		if err != nil {
			return nil, err
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	}
	return readAllMax(r, max)
}

// needsMore says of an error of decompress that more room might help.
func needsMore(err error) bool {
	return errors.Is(err, errTooLarge) || errors.Is(err, xz.ErrMemlimit) || errors.Is(err, zstd.ErrWindowSizeExceeded)
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
