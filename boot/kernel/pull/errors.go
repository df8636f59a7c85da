package pull

import (
	"errors"
	"fmt"
	"os"
)

// Errors of [Parse], [Pull] and [Remove], to be tested with errors.Is. Others
// are those of the file system, of the network, or the end of the context.
var (
	// ErrName is a name that no source has.
	ErrName = errors.New("not the name of a kernel to pull")
	// ErrNotFound says that the archive, the registry, the server or this
	// machine does not have what was named.
	ErrNotFound = errors.New("not found")
	// ErrArchive is a package or an image that is damaged, is over a limit, or
	// would write where it must not.
	ErrArchive = errors.New("unusable archive")
	// ErrChecksum says that what came is not what was promised.
	ErrChecksum = errors.New("wrong checksum")
	// ErrNoKernel says that there is no x86-64 bzImage in what was fetched.
	ErrNoKernel = errors.New("no kernel in it")
	// ErrUnavailable is a tool that is not on this machine, or a server that
	// can't be used.
	ErrUnavailable = errors.New("unavailable")
)

// bare drops the operation and the path from an error where the caller names
// them anyway.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func archiveError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrArchive}, args...)...)
}
