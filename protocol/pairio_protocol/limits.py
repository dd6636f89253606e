"""Every bound of the protocol, with its unit and reason. Relations are asserted at the end.

A value here is part of the agreement between nodes where it bounds what is sent or kept
(frames, segments, changes), and local otherwise (queues, waits).
"""

from typing import Final

# -- wire ---------------------------------------------------------------------------------
#: One frame on control and sync; yamux copes with 64 KiB reads, larger things go in chunks.
FRAME_SIZE_BYTES_MAX: Final = 60 * 1024
#: A segment is the unit of signature, storage and gossip; it must fit into a frame.
SEGMENT_SIZE_BYTES_MAX: Final = 48 * 1024
#: Records in one segment; the driver seals at this number (group commit).
SEGMENT_RECORDS_MAX: Final = 64
#: A service change; holds an app's spec or a few hundred members.
CHANGE_SIZE_BYTES_MAX: Final = 48 * 1024
#: The folded service document.
SERVICE_SIZE_BYTES_MAX: Final = 1024 * 1024
MEMBERS_MAX: Final = 4096
#: Admins of a service; a change that replaces them all carries twice as many signatures.
ADMINS_MAX: Final = 64
CHANGES_MAX: Final = 100_000
#: Changes that may follow one change: a fork is an accident or an attack.
SIBLINGS_MAX: Final = 64
CUTS_PER_CHANGE_MAX: Final = 128
#: A job definition travels inline in its request.
DEFINITION_SIZE_BYTES_MAX: Final = 40 * 1024
NAME_LENGTH_MAX: Final = 200
TEXT_LENGTH_MAX: Final = 16 * 1024
URL_LENGTH_MAX: Final = 8 * 1024
FILES_PER_JOB_MAX: Final = 256
PARAMETERS_PER_JOB_MAX: Final = 1024
TAGS_MAX: Final = 64
CANCELS_PER_RECORD_MAX: Final = 256
#: Items of one list, or entries of one map, in a frame or segment.
LIST_LENGTH_MAX: Final = 2048
#: Nesting of a document or a frame; deeper is a bomb, not data.
DEPTH_MAX: Final = 16
#: Chains of jobs that rest on jobs; resolution walks them.
DEPENDENCY_DEPTH_MAX: Final = 1000

# -- state kept for others ----------------------------------------------------------------
PARKED_SEGMENTS_PER_PEER_MAX: Final = 256
PRESENCE_PER_SERVICE_MAX: Final = MEMBERS_MAX
OFFERS_MAX: Final = 64
REQUESTS_OPEN_PER_AUTHOR_MAX: Final = 10_000
SEGMENTS_PER_SYNC_MAX: Final = 256
LOGS_PER_FRONTIER_MAX: Final = 300
CHANGES_PER_REPLY_MAX: Final = 64
CONNECTIONS_MAX: Final = 32
HANDLES_MAX: Final = 10_000
#: Requests of others that a compute node watches; beyond it the coordinators alone see to them.
UNSTARTED_MAX: Final = 20_000
#: Runs accepted by one node, of all submitters.
TASKS_MAX: Final = 4_096

# -- time (milliseconds of the node's clock) ----------------------------------------------
PRESENCE_INTERVAL_MS: Final = 60_000
PRESENCE_CHANGE_INTERVAL_MS: Final = 2_000
PRESENCE_EXPIRY_MS: Final = 180_000
PRESENCE_FANOUT: Final = 4
SYNC_INTERVAL_MS: Final = 3_000
AWARD_ANSWER_MS: Final = 1_000
BID_DELAY_MS: Final = 500
BID_RANK_MS: Final = 20
BID_INTERVAL_MS: Final = 2_000
BIDS_PER_SCAN: Final = 64
#: Ranks beyond this wait no longer.
RANK_MAX: Final = 50
DECLINE_PAUSE_MS: Final = 1_000
#: What is open is gone through this often at least, whatever happens.
LOOK_INTERVAL_MS: Final = 5_000
LEASE_MS: Final = 10_000
#: After a sleep every lease gets this long for a sign of life.
PROBE_MS: Final = 3_000
#: A coordinator that could not be reached for this long, plus rank times the next: take the run.
TAKE_DELAY_MS: Final = 10_000
TAKE_RANK_MS: Final = 2_000
#: A request that waited this long for another's job asks for that job itself.
WANT_DELAY_MS: Final = 20_000
#: News that gossip may not have brought is compared with some neighbours after this time.
NEWS_SYNC_MS: Final = 300
NEWS_FANOUT: Final = 3
STORED_ACK_MS: Final = 1_000
#: A request that is in no segment after this time never will be.
SEALED_MS: Final = 5_000
#: How long a submit waits for members that may have the result.
LOOKUP_MS: Final = 250
LOOKUP_JOBS_MAX: Final = 512
REQUEST_EXPIRY_MS: Final = 7 * 24 * 3600 * 1000
HOLD_RETRY_MS: Final = 5_000
SAFE_WAIT_MS: Final = 10_000

# -- attempts -----------------------------------------------------------------------------
#: Attempts of a request that machines may lose before it is exhausted.
ATTEMPTS_MAX: Final = 8
#: Doublings of the pause before a node is asked again that did not take what it was awarded.
STRIKES_MAX: Final = 6
BACKLOG_PER_SLOT_MAX: Final = 4
#: Open runs that a coordinator looks at in one turn.
AWARDS_PER_LOOK: Final = 256

# -- resources ----------------------------------------------------------------------------
CPU_MILLICORES_MAX: Final = 4096 * 1000
MEMORY_MIB_MAX: Final = 64 * 1024 * 1024
GPUS_MAX: Final = 1024
TIME_MS_MAX: Final = 366 * 24 * 3600 * 1000

assert SEGMENT_SIZE_BYTES_MAX < FRAME_SIZE_BYTES_MAX
assert CHANGE_SIZE_BYTES_MAX < FRAME_SIZE_BYTES_MAX
assert DEFINITION_SIZE_BYTES_MAX < SEGMENT_SIZE_BYTES_MAX
assert PRESENCE_INTERVAL_MS * 2 < PRESENCE_EXPIRY_MS
