package hostdir

import (
	"runtime"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maySwitch says whether this process may make files that belong to others.
func maySwitch() bool {
	if unix.Geteuid() != 0 {
		return false
	}
	_, data, err := capabilities()
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return err == nil && data[0].Effective&need == need
}

// capabilities are those of the calling thread.
func capabilities() (unix.CapUserHeader, [2]unix.CapUserData, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return header, data, err
}

// maker is whom of the host's users and groups something new belongs to.
func (f *FS) maker(caller *fuse.Caller) fuse.Owner {
	const nobody = ^uint32(0) // has no number here
	if !f.switches || caller.Uid == nobody || caller.Gid == nobody {
		return fuse.Owner{Uid: f.uid, Gid: f.gid}
	}
	return fuse.Owner{Uid: f.hostUID(caller.Uid), Gid: f.hostGID(caller.Gid)}
}

// asCaller makes something new in the host's tree so that it belongs to the
// caller, if this process may do that and the numbers mean something to it. The
// rights remain those of this process: it is the guest's kernel that has checked
// the caller's.
func (f *FS) asCaller(caller *fuse.Caller, call func() error) error {
	owner := f.maker(caller)
	if owner.Uid == f.uid && owner.Gid == f.gid {
		return again(call)
	}
	uid, gid := owner.Uid, owner.Gid
	done := make(chan error, 1)
	go func() {
		// The file system user is the thread's own. If it can't be put back
		// the thread ends with the goroutine.
		runtime.LockOSThread()
		header, before, err := capabilities()
		if err != nil {
			done <- err
			return
		}
		_ = unix.Setfsgid(int(gid))
		_ = unix.Setfsuid(int(uid)) // takes capabilities away, unless uid is 0
		if err = unix.Capset(&header, &before[0]); err == nil {
			err = again(call)
		}
		_ = unix.Setfsuid(int(f.uid))
		_ = unix.Setfsgid(int(f.gid))
		restored := unix.Capset(&header, &before[0])
		u, errU := unix.SetfsuidRetUid(-1)
		g, errG := unix.SetfsgidRetGid(-1)
		if restored == nil && errU == nil && errG == nil && uint32(u) == f.uid && uint32(g) == f.gid {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// lent takes from the mode of a new file the bits that would lend rights which
// its maker does not have: set-user-ID if the guest will see another owner,
// set-group-ID if it will see another group, or one that the maker is not in.
func (f *FS) lent(caller *fuse.Caller, dirMode uint16, dirGID uint32, mode uint32) uint32 {
	if mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return mode
	}
	owner := f.maker(caller)
	if dirMode&unix.S_ISGID != 0 {
		owner.Gid = dirGID
	}
	f.shown(&owner)
	if owner.Uid != caller.Uid {
		mode &^= unix.S_ISUID
	}
	if owner.Gid != caller.Gid {
		mode &^= unix.S_ISGID
	}
	return mode
}
