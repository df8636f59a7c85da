package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// What can be wrong with an entry. Errors of [Archive.Add] wrap one of these.
var (
	// ErrName is a name that the kernel could not create: empty, not clean
	// ("a//b", "./a", "a/../b"), with a NUL, too long, or the trailer's.
	ErrName = errors.New("bad name")
	// ErrSize is a file whose size is negative or above MaxFileSize, or that
	// has a size and no body.
	ErrSize = errors.New("bad size")
	// ErrMode is a file type that newc cannot express.
	ErrMode = errors.New("bad file type")
	// ErrTarget is an empty or too long symbolic link target.
	ErrTarget = errors.New("bad symbolic link target")
	// ErrDevice is a device number that the kernel's dev_t cannot hold.
	ErrDevice = errors.New("bad device number")
	// ErrExist is a second entry of the same name, two directories excepted.
	ErrExist = errors.New("is in the archive already")
	// ErrNotDir is an entry below something that is not a directory.
	ErrNotDir = errors.New("parent is not a directory")
)

// Entry is one file system object of an archive.
type Entry struct {
	// Name is the path from the root, "dev/console"; one leading slash is
	// dropped.
	Name string
	// Mode is the type and the permissions, setuid, setgid and sticky bits
	// included.
	Mode     fs.FileMode
	UID, GID uint32
	// Major and Minor are the device's numbers, for a device.
	Major, Minor uint32
	// Target is where a symbolic link points.
	Target string
	// Size is the length of a regular file in bytes.
	Size int64
	// Body is read when the image is read, not before, and must yield Size
	// bytes for as long as an image is in use. It may be nil if Size is 0.
	Body io.ReaderAt
}

// Archive collects entries. The zero value is ready to use. It is not safe for
// concurrent use; the images that it makes are.
type Archive struct {
	entries []Entry
	byName  map[string]int
}

// Add adds one entry at the end, and the directories above it that are not
// there yet (mode 0755, owned by root) before it. Adding a directory a second
// time changes the mode and the owner of the first.
func (a *Archive) Add(e Entry) error {
	e.Name = strings.TrimPrefix(e.Name, "/")
	if err := e.check(); err != nil {
		return fmt.Errorf("initramfs: %q: %w", e.Name, err)
	}
	return a.add(e, false)
}

func (a *Archive) add(e Entry, implied bool) error {
	if i, ok := a.byName[e.Name]; ok {
		old := &a.entries[i]
		if !old.Mode.IsDir() || !e.Mode.IsDir() {
			return fmt.Errorf("initramfs: %q %w", e.Name, ErrExist)
		}
		if !implied {
			*old = e
		}
		return nil
	}
	if dir := path.Dir(e.Name); dir != "." {
		if i, ok := a.byName[dir]; !ok {
			if err := a.add(Entry{Name: dir, Mode: fs.ModeDir | 0o755}, true); err != nil {
				return err
			}
		} else if !a.entries[i].Mode.IsDir() {
			return fmt.Errorf("initramfs: %q: %w: %q", e.Name, ErrNotDir, dir)
		}
	}
	if a.byName == nil {
		a.byName = make(map[string]int)
	}
	a.byName[e.Name] = len(a.entries)
	a.entries = append(a.entries, e)
	return nil
}

// Has reports whether the archive has an entry of this name.
func (a *Archive) Has(name string) bool {
	_, ok := a.byName[strings.TrimPrefix(name, "/")]
	return ok
}

// Len is the number of entries, implied directories included.
func (a *Archive) Len() int { return len(a.entries) }

// Dir adds a directory.
func (a *Archive) Dir(name string, perm fs.FileMode) error {
	return a.Add(Entry{Name: name, Mode: fs.ModeDir | perm})
}

// File adds a regular file of size bytes that are read from body when the
// image is.
func (a *Archive) File(name string, perm fs.FileMode, body io.ReaderAt, size int64) error {
	return a.Add(Entry{Name: name, Mode: perm, Body: body, Size: size})
}

// Bytes adds a regular file; data is kept, not copied.
func (a *Archive) Bytes(name string, perm fs.FileMode, data []byte) error {
	return a.File(name, perm, bytes.NewReader(data), int64(len(data)))
}

// Symlink adds a symbolic link that points to target.
func (a *Archive) Symlink(name, target string) error {
	return a.Add(Entry{Name: name, Mode: fs.ModeSymlink | 0o777, Target: target})
}

// CharDevice adds a character device node.
func (a *Archive) CharDevice(name string, perm fs.FileMode, major, minor uint32) error {
	mode := fs.ModeDevice | fs.ModeCharDevice | perm
	return a.Add(Entry{Name: name, Mode: mode, Major: major, Minor: minor})
}

// BlockDevice adds a block device node.
func (a *Archive) BlockDevice(name string, perm fs.FileMode, major, minor uint32) error {
	return a.Add(Entry{Name: name, Mode: fs.ModeDevice | perm, Major: major, Minor: minor})
}

// check finds what the kernel would refuse or silently leave out.
func (e *Entry) check() error {
	if err := checkName(e.Name); err != nil {
		return err
	}
	mode, ok := unixMode(e.Mode)
	if !ok {
		return fmt.Errorf("%w: %s", ErrMode, e.Mode)
	}
	kind := mode & sIFMT
	switch {
	case kind != sIFREG && (e.Size != 0 || e.Body != nil):
		return fmt.Errorf("%w: only a regular file has a body", ErrSize)
	case kind != sIFLNK && e.Target != "":
		return fmt.Errorf("%w: only a symbolic link has one", ErrTarget)
	case kind != sIFBLK && kind != sIFCHR && (e.Major != 0 || e.Minor != 0):
		return fmt.Errorf("%w: only a device has one", ErrDevice)
	}
	switch kind {
	case sIFREG:
		switch {
		case e.Size < 0 || e.Size > MaxFileSize:
			return fmt.Errorf("%w: %d bytes, want 0 to %d", ErrSize, e.Size, int64(MaxFileSize))
		case e.Size > 0 && e.Body == nil:
			return fmt.Errorf("%w: %d bytes and no body", ErrSize, e.Size)
		}
	case sIFLNK:
		switch {
		case e.Target == "" || strings.IndexByte(e.Target, 0) >= 0:
			return fmt.Errorf("%w: %q", ErrTarget, e.Target)
		case len(e.Target) > MaxName:
			return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrTarget, len(e.Target), MaxName)
		}
	case sIFBLK, sIFCHR:
		if e.Major > maxMajor || e.Minor > maxMinor {
			return fmt.Errorf("%w: %d:%d, at most %d:%d is allowed", ErrDevice, e.Major, e.Minor, maxMajor, maxMinor)
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == trailerName:
		return fmt.Errorf("%w: it cannot be that", ErrName)
	case name[0] == '/' || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../"):
		return fmt.Errorf("%w: it is not a clean path below the root", ErrName)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: it has a NUL byte", ErrName)
	case len(name) > MaxName:
		return fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrName, len(name), MaxName)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > MaxComponent {
			return fmt.Errorf("%w: a part of it has %d bytes, at most %d are allowed", ErrName, len(part), MaxComponent)
		}
	}
	return nil
}
