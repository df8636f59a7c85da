package hostdir

// SetSync has SyncFS call syncfs and all instead of the system calls. It is for a share that
// is not in use yet.
func (f *FS) SetSync(syncfs func(fd int) error, all func()) {
	f.syncs.syncfs, f.syncs.all = syncfs, all
}

// SyncFollows says whether a round waits for the one that is under way.
func (f *FS) SyncFollows() bool {
	f.syncs.mu.Lock()
	defer f.syncs.mu.Unlock()
	return f.syncs.next != nil
}

// MountPoints is mountPoints.
var MountPoints = mountPoints
