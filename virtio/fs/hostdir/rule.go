package hostdir

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// rule is what the options say about one path below the root, and those below
// it. Rules never change.
type rule struct {
	kids     map[string]*rule
	hidden   bool
	writable bool // from here on, but for what kids say
}

// file is a file of the host.
type file struct {
	dev, ino uint64
}

// rulesOf reads the options: the rule of the root and the files that are hidden
// whatever they are called.
func (f *FS) rulesOf(o *Options) (*rule, map[file]struct{}, error) {
	root := &rule{writable: !o.ReadOnly}
	hidden := map[file]struct{}{}
	for _, path := range o.Writable {
		names, err := below(f.dir, path, false)
		if err != nil {
			return nil, nil, err
		}
		var st unix.Statx_t
		if err := statAt(unix.AT_FDCWD, filepath.Join(f.dir, filepath.Join(names...)), &st); err != nil {
			return nil, nil, fmt.Errorf("hostdir: %s: %w: %w", path, ErrOptions, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, nil, fmt.Errorf("hostdir: %s is writable only as a directory, and it is none: %w", path, ErrOptions)
		}
		root.make(names).writable = true
	}
	for _, path := range o.Hidden {
		names, err := below(f.dir, path, true)
		if err != nil {
			return nil, nil, err
		}
		if len(names) == 0 {
			return nil, nil, fmt.Errorf("hostdir: %s is the share itself, and can't be hidden in it: %w", path, ErrOptions)
		}
		var st unix.Statx_t
		err = statAt(unix.AT_FDCWD, filepath.Join(f.dir, filepath.Join(names...)), &st)
		switch {
		case err == nil:
			hidden[fileOf(&st)] = struct{}{}
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			return nil, nil, fmt.Errorf("hostdir: %s: %w: %w", path, ErrOptions, err)
		}
		root.make(names).hidden = true
	}
	if names := root.contradiction(nil, false); names != nil {
		return nil, nil, fmt.Errorf("hostdir: %s is to be writable, and is hidden: %w", filepath.Join(f.dir, strings.Join(names, "/")), ErrOptions)
	}
	root.inherit()
	return root, hidden, nil
}

// make returns the rule of the path, which it makes if there is none.
func (r *rule) make(names []string) *rule {
	for _, name := range names {
		kid := r.kids[name]
		if kid == nil {
			kid = &rule{}
			if r.kids == nil {
				r.kids = map[string]*rule{}
			}
			r.kids[name] = kid
		}
		r = kid
	}
	return r
}

// contradiction returns a path that is writable and, or below one that is,
// hidden.
func (r *rule) contradiction(names []string, hidden bool) []string {
	hidden = hidden || r.hidden
	if hidden && r.writable {
		return names
	}
	for name, kid := range r.kids {
		if bad := kid.contradiction(append(names[:len(names):len(names)], name), hidden); bad != nil {
			return bad
		}
	}
	return nil
}

// inherit has what is below a writable directory writable, too.
func (r *rule) inherit() {
	for _, kid := range r.kids {
		kid.writable = kid.writable || r.writable && !kid.hidden
		kid.inherit()
	}
}

// kid is the rule of a name in a directory, or nil if there is none.
func (r *rule) kid(name string) *rule {
	if r == nil {
		return nil
	}
	return r.kids[name]
}
