package pull

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// maxWindow bounds what a decompressor may keep: the dictionary of xz -9.
const maxWindow = 64 << 20

// The marks that a layer of an image has for what is not there any more (OCI
// Image Specification, "Whiteouts").
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// addTar puts what a tar archive has of a kernel into the tree. Links that are
// not hard ones are left out, as a kernel's package and its modules directory
// have them only to where it was built. Errors wrap ErrArchive or are those of
// r, the file system and ctx.
func (t *tree) addTar(ctx context.Context, r io.Reader, whiteouts bool) error {
	in := &bounded{ctx: ctx, r: r, left: t.limits.read}
	archive := tar.NewReader(in)
	for entries := 0; ; entries++ {
		h, err := archive.Next()
		if err == io.EOF {
			// The padding, and what a decompressor checks behind it.
			_, err = io.Copy(io.Discard, in)
			return in.explain(err)
		}
		if err != nil {
			return in.explain(err)
		}
		if entries == t.limits.names {
			return archiveError("it has more than %d entries", t.limits.names)
		}
		if whiteouts && strings.HasPrefix(path.Base(h.Name), whiteout) {
			if err := t.whiteout(h.Name); err != nil {
				return err
			}
			continue
		}
		name, err := place(h.Name)
		if err != nil {
			return err
		}
		if name == "" {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			w := in.watch(archive)
			if err := t.put(name, w); err != nil {
				if w.err != nil {
					return in.explain(err)
				}
				return err
			}
		case tar.TypeLink:
			target, err := place(h.Linkname)
			if err != nil {
				return err
			}
			if target == "" {
				return archiveError("%s is a link to %q, which is not among a kernel's files", h.Name, h.Linkname)
			}
			if err := t.link(name, target); err != nil {
				return err
			}
		}
	}
}

// whiteout removes what an earlier layer has put there.
func (t *tree) whiteout(name string) error {
	if strings.Contains(name, "..") && strings.Contains("/"+name+"/", "/../") {
		return archiveError("it has a file named %q", name)
	}
	dir, base := path.Split(strings.TrimPrefix(path.Clean("/"+name), "/"))
	gone := path.Join(dir, strings.TrimPrefix(base, whiteout))
	if base == opaque {
		gone = path.Clean(dir)
	}
	gone = strings.TrimPrefix(gone, "usr/")
	switch {
	case gone == "." || gone == "usr":
		return errors.Join(t.remove(bootName), t.remove("lib"))
	case gone == bootName, gone == "lib", strings.HasPrefix(gone, bootName+"/"), gone == modulesName, strings.HasPrefix(gone, modulesName+"/"):
		return t.remove(gone)
	}
	return nil
}

// bounded passes on at most left bytes, and none once ctx has ended. It keeps
// the errors of what it reads apart from what a parser makes of the bytes.
type bounded struct {
	ctx  context.Context
	r    io.Reader
	left int64
	err  error
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.err == nil {
		b.err = b.ctx.Err()
	}
	if b.err != nil {
		return 0, b.err
	}
	if b.left <= 0 {
		b.err = archiveError("it is too large when unpacked")
		return 0, b.err
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// explain makes an error of a parser above b one of the archive, unless it is
// one of the reader below.
func (b *bounded) explain(err error) error {
	switch {
	case b.err != nil:
		return b.err
	case err == nil:
		return nil
	case errors.Is(err, ErrArchive), hostError(err):
		return err
	}
	return archiveError("%w", err)
}

// hostError says that an error is not about what was read.
func hostError(err error) bool {
	var path *fs.PathError
	var link *os.LinkError
	var call syscall.Errno
	return errors.As(err, &path) || errors.As(err, &link) || errors.As(err, &call) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// watched remembers that reading failed, and not the writing of what was read.
type watched struct {
	r   io.Reader
	err error
}

func (b *bounded) watch(r io.Reader) *watched { return &watched{r: r} }

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// decompress recognises gzip, xz and zstd by their first bytes; anything else
// is passed on as it is. close gives back what the decompressor holds. The
// errors of the reader below stay what they are, those of the format wrap
// ErrArchive.
func decompress(r io.Reader) (plain io.Reader, close func(), err error) {
	in := &watched{r: r}
	buffered := bufio.NewReaderSize(in, 256<<10)
	magic, err := buffered.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	out := &format{below: in}
	close = func() {}
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		out.r, err = gzip.NewReader(buffered)
	case strings.HasPrefix(string(magic), "\xfd7zXZ\x00"):
		out.r, err = xz.NewReader(buffered, maxWindow)
	case strings.HasPrefix(string(magic), "\x28\xb5\x2f\xfd"):
		var z *zstd.Decoder
		z, err = zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err == nil {
			out.r, close = z, z.Close
		}
	default:
		return buffered, close, nil
	}
	if err != nil {
		return nil, nil, out.explain(err)
	}
	return out, close, nil
}

// format is a decompressor whose errors are the archive's.
type format struct {
	r     io.Reader
	below *watched
}

func (f *format) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	return n, f.explain(err)
}

func (f *format) explain(err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case f.below.err != nil:
		return f.below.err
	}
	return archiveError("decompression: %w", err)
}
