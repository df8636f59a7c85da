package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// extract unpacks those regular files of a package that keep is true of. A
// kernel's package is a hundred times larger than the image in it.
func extract(ctx context.Context, deb, tree string, keep func(file string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, unpackTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	rerr := extractTar(out, tree, keep)
	// dpkg-deb must not wait for a reader that has given up.
	out.Close()
	if err := cmd.Wait(); err != nil && rerr == nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, lastErrors(errs.String()))
	}
	return rerr
}

func extractTar(r io.Reader, tree string, keep func(file string) bool) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // the padding behind the end
			return err
		}
		if err != nil {
			return err
		}
		// An absolute name, cleaned, does not lead out of the tree.
		name := path.Clean("/" + h.Name)
		if h.Typeflag != tar.TypeReg || !keep(name) {
			continue
		}
		to := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, cerr := io.Copy(f, in)
		if err := errors.Join(cerr, f.Close()); err != nil {
			return err
		}
	}
}
