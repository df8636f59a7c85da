package pull

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// debSource is a kernel in one or several Debian packages.
type debSource struct{ parts []debPart }

func (s *debSource) String() string {
	var names []string
	for _, p := range s.parts {
		names = append(names, p.String())
	}
	return strings.Join(names, " ")
}

func (s *debSource) find(ctx context.Context, j *job) (offer, error) {
	o := offer{fetch: s.fetch}
	var ids []string
	for _, p := range s.parts {
		sum := p.sum
		if p.path != "" {
			var err error
			if sum, err = fileSum(ctx, p.path); err != nil {
				return o, notFound(p.path, err)
			}
		}
		if sum == "" {
			return o, nil // only its bytes tell
		}
		ids = append(ids, "sha256:"+sum)
	}
	o.id = strings.Join(ids, " ")
	return o, nil
}

// notFound makes of the absence of a file, or of what is none, what the user got
// wrong.
func notFound(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s: %w", ErrNotFound, path, bare(err))
	case errors.Is(err, errIrregular):
		return fmt.Errorf("%w: %s: %w", ErrArchive, path, bare(err))
	}
	return fmt.Errorf("%s: %w", path, bare(err))
}

func (s *debSource) fetch(ctx context.Context, j *job, t *tree) (fetched, error) {
	var got fetched
	for i, p := range s.parts {
		file := p.path
		if p.url != "" {
			file = j.work.join(fmt.Sprintf("%d.deb", i))
			if _, err := j.web.fetch(ctx, download{url: p.url, name: p.base(), sum: p.sum}, file, j.reporter); err != nil {
				return got, err
			}
		}
		part, err := j.unpackDeb(ctx, file, p.base(), t)
		if err != nil {
			return got, err
		}
		if p.url != "" {
			os.Remove(file)
		}
		got.parts = append(got.parts, part)
		got.id = strings.TrimSpace(got.id + " sha256:" + part.SHA256)
	}
	return got, nil
}

// unpackDeb puts what a package file has of a kernel into the tree.
func (j *job) unpackDeb(ctx context.Context, file, name string, t *tree) (Part, error) {
	f, err := openRegular(file)
	if err != nil {
		return Part{}, err
	}
	defer f.Close()
	sum, err := fileSum(ctx, file)
	if err != nil {
		return Part{}, err
	}
	c, err := readDeb(ctx, j.meter(f, StepUnpacking, name, fileSize(file)), t)
	if err != nil {
		return Part{}, fmt.Errorf("%s: %w", name, err)
	}
	return Part{Name: cmp.Or(c.name, name), Version: c.version, SHA256: sum}, nil
}

// meter reports how much of a file has been read.
func (j *job) meter(r io.Reader, step Step, name string, total int64) io.Reader {
	return &metered{r: r, to: func(done int64) { j.report(step, name, done, total) }}
}

type metered struct {
	r    io.Reader
	done int64
	to   func(int64)
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.done += int64(n)
	m.to(m.done)
	return n, err
}
