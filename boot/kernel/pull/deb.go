package pull

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// The ar archive that a package is (ar(5), deb(5)).
const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
	arNameEnd    = 16
	arSizeStart  = 48
	arSizeEnd    = 58
	arHeaderTail = "`\n"

	debFormat   = "debian-binary"
	controlStem = "control.tar"
	dataStem    = "data.tar"

	// maxControl bounds the decompressed control archive in bytes, maxMembers
	// the members of the ar archive.
	maxControl = 16 << 20
	maxMembers = 16
)

// debControl is what a package says of itself.
type debControl struct{ name, version, architecture string }

// readDeb unpacks what a Debian package has of a kernel. The package is read
// once, from front to end. Errors wrap ErrArchive or are those of r, the file
// system and ctx.
func readDeb(ctx context.Context, r io.Reader, t *tree) (debControl, error) {
	var c debControl
	in := &bounded{ctx: ctx, r: r, left: t.limits.read}
	b := bufio.NewReaderSize(in, 64<<10)
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(b, magic); err != nil || string(magic) != arMagic {
		if in.err != nil {
			return c, in.err
		}
		return c, archiveError("not a Debian package: it does not begin with %q", strings.TrimSpace(arMagic))
	}
	for n := 0; n < maxMembers; n++ {
		name, size, err := nextMember(b)
		if err != nil {
			if err == io.EOF {
				err = errors.New("it ends before its data.tar")
			}
			return c, in.explain(err)
		}
		body := &io.LimitedReader{R: b, N: size}
		stem, _, _ := strings.Cut(name, ".tar")
		switch stem + ".tar" {
		case debFormat + ".tar":
			err = checkDebFormat(body)
		case controlStem:
			c, err = readControl(ctx, body)
			if err == nil && c.architecture != "amd64" && c.architecture != "all" {
				err = archiveError("a package for the architecture %q, want amd64", c.architecture)
			}
		case dataStem:
			err = t.addCompressedTar(ctx, body, false)
			if err == nil {
				_, err = io.Copy(io.Discard, body)
			}
			if err == nil && body.N > 0 {
				err = io.ErrUnexpectedEOF
			}
			// Whatever comes behind is nothing that a package has.
			return c, in.explain(err)
		}
		if err == nil {
			// An even length, and what a decompressor has left unread.
			_, err = io.Copy(io.Discard, body)
			if err == nil && size%2 == 1 {
				_, err = b.Discard(1)
			}
		}
		if err == nil && body.N > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return c, in.explain(err)
		}
	}
	return c, archiveError("it has no data.tar among its first %d members", maxMembers)
}

// nextMember reads the header of a member.
func nextMember(r io.Reader) (name string, size int64, err error) {
	var h [arHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return "", 0, err
	}
	if string(h[arSizeEnd:]) != arHeaderTail {
		return "", 0, errors.New("a damaged member header")
	}
	name = strings.TrimSuffix(strings.TrimRight(string(h[:arNameEnd]), " "), "/")
	size, err = strconv.ParseInt(strings.TrimRight(string(h[arSizeStart:arSizeEnd]), " "), 10, 64)
	if err != nil || size < 0 {
		return "", 0, fmt.Errorf("a member of %q bytes", h[arSizeStart:arSizeEnd])
	}
	return name, size, nil
}

func checkDebFormat(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, 16))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(b), "2.") {
		return archiveError("a package of format %q, want 2", strings.TrimSpace(string(b)))
	}
	return nil
}

// addCompressedTar puts what a tar archive, compressed or not, has of a kernel
// into the tree.
func (t *tree) addCompressedTar(ctx context.Context, r io.Reader, whiteouts bool) error {
	plain, close, err := decompress(r)
	if err != nil {
		return err
	}
	defer close()
	return t.addTar(ctx, plain, whiteouts)
}

// readControl reads the fields that matter out of a control archive.
func readControl(ctx context.Context, r io.Reader) (debControl, error) {
	var c debControl
	plain, close, err := decompress(r)
	if err != nil {
		return c, err
	}
	defer close()
	in := &bounded{ctx: ctx, r: plain, left: maxControl}
	archive := tar.NewReader(in)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return c, archiveError("its control archive has no file named control")
		}
		if err != nil {
			return c, in.explain(err)
		}
		if path.Clean("/"+h.Name) != "/control" || h.Typeflag != tar.TypeReg {
			continue
		}
		lines := bufio.NewScanner(archive)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			field, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimSpace(value)
			switch field {
			case "Package":
				c.name = value
			case "Version":
				c.version = value
			case "Architecture":
				c.architecture = value
			}
		}
		return c, in.explain(lines.Err())
	}
}
