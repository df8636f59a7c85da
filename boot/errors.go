package boot

import (
	"errors"
	"fmt"
)

// What can be wrong with an image or with what surrounds it. Every error of
// this package wraps one of these, an error of the file system (such as
// [io/fs.ErrNotExist]), or one of package memory.
var (
	// ErrNotKernel: the file is something else than a Linux kernel.
	ErrNotKernel = errors.New("not a Linux kernel")
	// ErrWrongArch: a kernel, but not for 64-bit x86.
	ErrWrongArch = errors.New("kernel of another architecture")
	// ErrUnsupported: an x86-64 kernel that this loader can't enter.
	ErrUnsupported = errors.New("unsupported kernel")
	// ErrMalformed: a kernel whose headers contradict themselves.
	ErrMalformed = errors.New("malformed kernel")
	// ErrTruncated: the file ends before its headers say so.
	ErrTruncated = errors.New("truncated file")
	// ErrTooBig: kernel or initrd does not fit into the guest's memory.
	ErrTooBig = errors.New("does not fit into memory")
	// ErrCmdline: the kernel can't take this command line.
	ErrCmdline = errors.New("bad command line")
	// ErrParams: the caller's description of the machine is wrong.
	ErrParams = errors.New("bad boot parameters")
	// ErrNotFile: the path names something that is not a regular file.
	ErrNotFile = errors.New("not a regular file")
	// ErrEmpty: the file has no bytes.
	ErrEmpty = errors.New("empty file")
)

// fault is an error whose text is a sentence of its own and which is one of
// the sentinels above.
type fault struct {
	kind error
	text string
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.kind }

func faultf(kind error, format string, args ...any) error {
	return &fault{kind: kind, text: fmt.Sprintf(format, args...)}
}

// notKernel says what was found in a kernel's place.
func notKernel(format string, args ...any) error {
	return &fault{kind: ErrNotKernel, text: "not a Linux kernel: " + fmt.Sprintf(format, args...)}
}

// about puts the name of the file in front.
func about(name string, err error) error {
	return fmt.Errorf("boot: %s: %w", name, err)
}
