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
#: One record of this node: a segment must hold it.
RECORD_SIZE_BYTES_MAX: Final = SEGMENT_SIZE_BYTES_MAX - 1024
#: Records in one segment; the driver seals at this number (group commit).
SEGMENT_RECORDS_MAX: Final = 64
#: A presence entry; many of them travel in one frame.
PRESENCE_SIZE_BYTES_MAX: Final = 4 * 1024
#: A service change; holds an app's spec or a few hundred members.
CHANGE_SIZE_BYTES_MAX: Final = 48 * 1024
#: The folded service document.
SERVICE_SIZE_BYTES_MAX: Final = 1024 * 1024
#: Members of a service, each with up to 64 keys.
MEMBERS_MAX: Final = 4096
#: Admins of a service; a change that replaces them all carries twice as many signatures.
ADMINS_MAX: Final = 64
#: Changes of a service, losing branches included: all are kept for ever.
CHANGES_MAX: Final = 100_000
#: Changes of one admin that may follow one change: a fork is an accident or an attack.
SIBLINGS_MAX: Final = 64
#: Logs that one change may cut; logs that it does not name are cut at 0.
CUTS_PER_CHANGE_MAX: Final = 128
#: Invitations of a service; when there are more, those that are dead are forgotten.
INVITATIONS_MAX: Final = 256
#: Times that one invitation may be used.
INVITATION_USES_MAX: Final = 1000
#: Devices that came by the word of one key, or of devices of it, those that are gone included.
DEVICE_LINKS_MAX: Final = 256
#: A signed wish to join or leave: up to CUTS_PER_CHANGE_MAX heads, and addresses.
WISH_SIZE_BYTES_MAX: Final = 16 * 1024
#: A job definition travels inline in its request.
DEFINITION_SIZE_BYTES_MAX: Final = 40 * 1024
#: Names of services, members, apps, processors, parameters, files.
NAME_LENGTH_MAX: Final = 200
#: An Ed25519 signature, in a segment, change or presence.
SIGNATURE_SIZE_BYTES: Final = 64
#: Any other text in a record, message or definition.
TEXT_LENGTH_MAX: Final = 16 * 1024
#: The URL of an input.
URL_LENGTH_MAX: Final = 8 * 1024
#: Inputs, and outputs, of one job.
FILES_PER_JOB_MAX: Final = 256
#: Parameters of one job, processors of an app, fields of a processor.
PARAMETERS_PER_JOB_MAX: Final = 1024
#: Tags, and targets, of one request.
TAGS_MAX: Final = 64
#: Requests that one `cancel` withdraws.
CANCELS_PER_RECORD_MAX: Final = 256
#: Secrets of one job; the bytes of one and of all together; characters that can be masked.
SECRETS_PER_JOB_MAX: Final = 16
SECRET_SIZE_BYTES_MAX: Final = 16 * 1024
SECRETS_SIZE_BYTES_MAX: Final = 32 * 1024
SECRET_LENGTH_MIN: Final = 8
#: Apps for which a node says in its presence that they may have the network.
NETWORKS_SAID_MAX: Final = 32
#: Ranges of one input by URL that a result tells; neighbours are joined to keep to it.
RANGES_TOLD_MAX: Final = 32
#: Items of one list, or entries of one map, in a frame or segment.
LIST_LENGTH_MAX: Final = 2048
#: Nesting of a document or a frame; deeper is a bomb, not data.
DEPTH_MAX: Final = 16
#: Chains of jobs that rest on jobs; resolution walks them.
DEPENDENCY_DEPTH_MAX: Final = 1000

# -- state kept for others ----------------------------------------------------------------
#: Segments of an unknown epoch that wait for their change, of one service.
PARKED_SEGMENTS_PER_SERVICE_MAX: Final = 256
#: Segments that wait for what comes before them, of one author.
PARKED_SEGMENTS_PER_AUTHOR_MAX: Final = 256
#: Presence entries kept for a service: one for every member.
PRESENCE_PER_SERVICE_MAX: Final = MEMBERS_MAX
#: Services that wait for the owner's consent.
OFFERS_MAX: Final = 64
#: Services of which the owner said that he wants no part.
DECLINED_MAX: Final = 1024
#: Wishes to join or leave a service that wait here for an admin; and those of one sender.
WISHES_HELD_MAX: Final = 256
WISHES_PER_PEER_MAX: Final = 16
#: This node's own wishes, answered ones included.
WISHES_OWN_MAX: Final = 64
#: Members whose addresses a link holds.
LINK_PEERS_MAX: Final = 4
#: Addresses of one peer, in a link, a wish or a presence entry.
ADDRESSES_MAX: Final = 8
#: Characters of an address that a member says of himself or of others.
ADDRESS_LENGTH_MAX: Final = 256
#: The text of a link.
LINK_LENGTH_MAX: Final = 4096
#: What one such service may weigh: the bytes of its changes, and of the list after each.
OFFER_WEIGHT_MAX: Final = 8 * 1024 * 1024
#: Work for such services in a minute, all together: bytes of lists to be made, some per op.
OFFER_WORK_PER_MINUTE_MAX: Final = 32 * 1024 * 1024
#: Services whose changes come in several messages and have not named this node yet.
UNNAMED_MAX: Final = 8
#: Services in one hello that are unknown here and whose changes are asked for.
HELLO_UNKNOWN_MAX: Final = 16
#: Proposed changes kept for a service, and of those that one admin proposed.
PROPOSALS_MAX: Final = 64
PROPOSALS_PER_ADMIN_MAX: Final = 8
#: Proposals of a service that the owner withdrew and that are remembered.
WITHDRAWN_MAX: Final = 256
#: Requests an hour that a public service may let strangers have, each or together, of one sponsor.
GUEST_REQUESTS_PER_HOUR_MAX: Final = 10_000
#: Open requests of strangers, each or together, that one sponsor may have.
GUEST_REQUESTS_OPEN_MAX: Final = 1_000
#: Asks of strangers that a sponsor looks at in a second, of one and of all; others are refused.
ASKS_PER_SECOND_EACH: Final = 10
ASKS_PER_SECOND_ALL: Final = 50
#: A job definition that a stranger asks for.
ASK_DEFINITION_SIZE_BYTES_MAX: Final = 16 * 1024
#: Tags that a stranger gives, and characters of each.
ASK_TAGS_MAX: Final = 8
#: Public services in which this node is a guest.
GUEST_SERVICES_MAX: Final = 64
#: Jobs of this node, as a guest, that are not done.
ASKS_OWN_MAX: Final = 256
#: Blocks of a guest's results that a sponsor remembers to be his, of all guests.
GUEST_BLOCKS_MAX: Final = 100_000
#: Blocks asked for in one request on /pairio/blocks/1, and the bytes of such a request.
BLOCKS_PER_REQUEST_MAX: Final = 32
BLOCK_REQUEST_SIZE_BYTES_MAX: Final = 8 * 1024
#: Streams on /pairio/blocks/1 that one peer may have open at a node; a node opens half as many.
BLOCK_STREAMS_PER_PEER_MAX: Final = 32
#: Blocks that a node has in memory at once for one peer that it serves.
BLOCKS_SERVED_AT_ONCE_MAX: Final = 2
#: A request on /pairio/logs/1, and the bytes of a console in one piece of the answer.
LOG_REQUEST_SIZE_BYTES_MAX: Final = 1024
LOG_PIECE_SIZE_BYTES_MAX: Final = 32 * 1024
#: Streams on /pairio/logs/1 that a node serves to one peer, to all keys of one member, and in all.
LOG_STREAMS_PER_PEER_MAX: Final = 8
LOG_STREAMS_PER_MEMBER_MAX: Final = 16
LOG_STREAMS_MAX: Final = 128
#: Streams on /pairio/secrets/1 that a node serves to one peer, to all keys of one member, in all.
SECRET_STREAMS_PER_PEER_MAX: Final = 4
SECRET_STREAMS_PER_MEMBER_MAX: Final = 24
SECRET_STREAMS_MAX: Final = 64
#: Consoles that clients of a node follow at once.
CONSOLES_FOLLOWED_MAX: Final = 64
#: Open requests of one author that a node sees to.
REQUESTS_OPEN_PER_AUTHOR_MAX: Final = 10_000
#: Segments sent for one frontier; the rest follows the next.
SEGMENTS_PER_SYNC_MAX: Final = 256
#: Heights in one frontier; ranges of keys are sent one after the other.
LOGS_PER_FRONTIER_MAX: Final = 300
#: Changes in one message; the receiver asks on.
CHANGES_PER_REPLY_MAX: Final = 64
#: Peers that a node stays connected to.
#: Segments, results, presence entries whose decoded form is remembered, each.
DECODED_MAX: Final = 512
#: Records in one log; then the node begins a new one.
LOG_RECORDS_MAX: Final = 20_000
#: Logs dropped in one look, and logs remembered as dropped.
LOGS_DROPPED_PER_LOOK: Final = 64
DROPPED_LOGS_MAX: Final = 100_000
#: Segments of dropped logs that members sent on request.
KEPT_PUSHED_MAX: Final = 100_000
#: Bytes of kept segments of one author beyond which no more of his are taken from others.
KEPT_BYTES_PER_AUTHOR_MAX: Final = 256 * 1024 * 1024
CONNECTIONS_MAX: Final = 32
#: Local handles on results found elsewhere.
HANDLES_MAX: Final = 10_000
#: Requests of others that a compute node watches; beyond it the coordinators alone see to them.
UNSTARTED_MAX: Final = 20_000
#: Runs accepted by one node, of all submitters.
TASKS_MAX: Final = 4_096
#: Attempts that began on a node, whose ids it takes for no other run.
ATTEMPTS_REMEMBERED_MAX: Final = 4 * TASKS_MAX
#: Results whose copies are being made.
COPIES_MAX: Final = 20_000
#: Results known to be safe; of older ones it is found out again.
SAFE_KNOWN_MAX: Final = 100_000
#: Copies that this node fetches for others at once; and looks on its disk for them.
HOLDS_SERVED_MAX: Final = 4_096
#: Results whose content is looked for at once; beyond it, answers are given unlooked.
LOOKS_MAX: Final = 20_000

# -- time (milliseconds of the node's clock) ----------------------------------------------
#: Presence is said again this often though nothing has changed.
PRESENCE_INTERVAL_MS: Final = 60_000
#: A wish of this node that is not answered is said again to connected members of its link.
WISH_RETRY_MS: Final = 15_000
#: A wish that waits for an admin's word is forgotten after this time.
WISH_EXPIRY_MS: Final = 7 * 24 * 3600 * 1000
#: Changes of presence are said at most this often.
PRESENCE_CHANGE_INTERVAL_MS: Final = 2_000
#: An entry that was not renewed for so long is forgotten.
PRESENCE_EXPIRY_MS: Final = 180_000
#: Neighbours that a change of presence is passed on to.
PRESENCE_FANOUT: Final = 4
#: What is to be passed on waits so long, so that one frame takes it all.
PRESENCE_PASS_MS: Final = 1_000
#: A random neighbour is compared with this often.
SYNC_INTERVAL_MS: Final = 3_000
#: Heights that have differed from a neighbour's for so long without moving differ by dropped logs.
SYNC_SETTLED_MS: Final = 10_000
#: A worker that does not answer an award for so long is passed over.
AWARD_ANSWER_MS: Final = 1_000
#: A run that nobody started for so long gets bids, rank times the next later.
BID_DELAY_MS: Final = 500
#: What each rank waits longer before it bids.
BID_RANK_MS: Final = 20
#: What is due for bids is gone through at most this often: several go in one frame.
BID_SCAN_MS: Final = 100
#: A free node bids for the same run at most this often.
BID_INTERVAL_MS: Final = 2_000
#: Runs that one look may bid for.
BIDS_PER_SCAN: Final = 64
#: Ranks beyond this wait no longer.
RANK_MAX: Final = 50
#: A node that declined is not asked again for so long.
DECLINE_PAUSE_MS: Final = 1_000
#: What is open is gone through this often at least, whatever happens.
LOOK_INTERVAL_MS: Final = 5_000
#: The right to run; renewed by a beat every third of it.
LEASE_MS: Final = 10_000
#: How far a run may say that it is: all of it.
PERMILLE_MAX: Final = 1_000
#: After a sleep every lease gets this long for a sign of life.
PROBE_MS: Final = 3_000
#: A coordinator that could not be reached for this long, plus rank times the next: take the run.
TAKE_DELAY_MS: Final = 10_000
#: What each rank waits longer before it takes a run.
TAKE_RANK_MS: Final = 2_000
#: A request that waited this long for another's job asks for that job itself.
WANT_DELAY_MS: Final = 20_000
#: News that gossip may not have brought is compared with some neighbours after this time.
NEWS_SYNC_MS: Final = 300
#: Before something is taken from a member, other members may send for so long what they know of
#: his logs.
CUT_WAIT_MS: Final = 500
#: Neighbours that news is compared with.
NEWS_FANOUT: Final = 3
#: A submit waits so long for another member to have stored it.
STORED_ACK_MS: Final = 1_000
#: Members asked to store a request; the home nodes of its job first, so that they know what it is.
STORED_ASKED: Final = 3
#: A request that is in no segment after this time never will be.
SEALED_MS: Final = 5_000
#: How long a submit waits for members that may have the result.
LOOKUP_MS: Final = 250
#: Connected members that a submit asks for its job: the home nodes among them, and some more.
LOOKUP_ASKED: Final = 8
#: Jobs in one look-up.
LOOKUP_JOBS_MAX: Final = 512
#: Jobs on which one looked-up job rests that are answered with it.
UPSTREAM_SENT_MAX: Final = 64
#: Results sent to somebody who asks for a job whose definition is not known here.
RESULTS_SENT_MAX: Final = 8
#: For so long a member who was asked for jobs may send segments of logs that it has dropped.
ASKED_MS: Final = 30_000
#: Members, first by rendezvous(job, peer), who are sent the results of a job.
HOME_NODES: Final = 3
#: A request that says nothing else is given up after this time.
REQUEST_EXPIRY_MS: Final = 7 * 24 * 3600 * 1000
#: A stranger's request is given up after this time.
GUEST_EXPIRY_MS: Final = 3600 * 1000
#: A sponsor that does not answer a guest for so long is passed over.
ASK_ANSWER_MS: Final = 5_000
#: A guest asks its sponsor, or for one, again this often.
ASK_RETRY_MS: Final = 30_000
#: A guest hears so long nothing from any sponsor before it says so.
ASK_GIVE_UP_MS: Final = 10_000
#: A member that did not answer `hold` is asked again, or another.
HOLD_RETRY_MS: Final = 5_000
#: A member that is asked whether it holds content is waited for so long.
WHERE_MS: Final = 1_000
#: Content that nobody held is looked for again this often.
LOOK_AGAIN_MS: Final = 5_000
#: Content that nobody held for so long is computed again: a holder may only sleep or start anew.
LOST_PATIENCE_MS: Final = 60_000
#: Whoever waits for a result waits so long for its copies.
SAFE_WAIT_MS: Final = 10_000
#: Whether enough members still hold a result is looked at this often, some results at a time.
REPAIR_INTERVAL_MS: Final = 600_000
#: Results looked after in one round, for each connected member.
REPAIR_BATCH: Final = 64
#: Logs in which nothing is newer, and all of which is over, are dropped.
RETENTION_MS: Final = 30 * 24 * 3600 * 1000
#: How often such logs are looked for.
RETENTION_LOOK_MS: Final = 600_000
#: Neighbours are told of dropped logs for so long, so that they do not send them.
RETENTION_SKEW_MS: Final = 2 * 24 * 3600 * 1000
#: A node begins a new log of its own after this time.
LOG_AGE_MAX_MS: Final = 24 * 3600 * 1000
#: Another node that uses this node's key counts as gone when nothing was heard of it for so long.
TWIN_EXPIRY_MS: Final = 180_000
#: Presence of another start of this node proves one that runs when its counter grows after this.
TWIN_PROOF_MS: Final = 5_000

# -- Bitswap ------------------------------------------------------------------------------
#: A Bitswap message of a peer that this node has asked for blocks, as in other implementations.
BITSWAP_MESSAGE_SIZE_BYTES_MAX: Final = 4 * 1024 * 1024
#: A Bitswap message of any other peer: it has nothing to bring but wants.
BITSWAP_WANTS_SIZE_BYTES_MAX: Final = 512 * 1024
#: Entries of one Bitswap message.
BITSWAP_ENTRIES_MAX: Final = 4096
#: Wants that are kept of one peer; what is more is passed over.
BITSWAP_WANTS_PER_PEER_MAX: Final = 1024
#: Peers whose wants are kept; then the one that was heard of longest ago is forgotten.
BITSWAP_PEERS_MAX: Final = 64
#: Bitswap streams that one peer may have open here.
BITSWAP_STREAMS_PER_PEER_MAX: Final = 8
#: The same for one that is asked for blocks: Kubo sends each on a stream of its own.
BITSWAP_STREAMS_PER_HOLDER_MAX: Final = 64
#: Bitswap streams that all peers together may have open here, but those that are asked for blocks.
BITSWAP_STREAMS_MAX: Final = 128
#: Bytes of blocks that one peer is given in a second.
BITSWAP_PEER_PER_S_BYTES_MAX: Final = 32 * 1024 * 1024
#: Bytes of blocks that all peers together are given in a second: members go first.
BITSWAP_ALL_PER_S_BYTES_MAX: Final = 64 * 1024 * 1024
#: Answers with blocks that are made at once, each in memory.
BITSWAP_ANSWERS_AT_ONCE_MAX: Final = 16
#: Blocks that one peer is asked for at once.
BITSWAP_WINDOW_MAX: Final = 16
#: Peers that one fetch takes blocks from.
BITSWAP_HOLDERS_MAX: Final = 4
#: Peers that are asked whether they have some content.
BITSWAP_ASKED_MAX: Final = 16
#: Blocks that nobody asked for, of one peer, before its stream is reset.
BITSWAP_UNASKED_MAX: Final = 64
#: Peers that have content are looked for so long.
BITSWAP_FIND_MS: Final = 5_000
#: A holder that gives no block for so long is left.
BITSWAP_STALL_MS: Final = 20_000
#: A holder that gives no block for so long is asked again, once: a stream may have been lost.
BITSWAP_ASK_AGAIN_MS: Final = 5_000
#: Blocks of one content that is fetched over Bitswap.
BITSWAP_DAG_BLOCKS_MAX: Final = 1_000_000
#: Levels of content that is fetched over Bitswap.
BITSWAP_DAG_DEPTH_MAX: Final = 256
#: Blocks that a holder may turn out to lack before it is left.
BITSWAP_LACKING_MAX: Final = 256
#: Connections of peers that are no pairio nodes; then the one that used its own longest ago goes.
OTHER_CONNECTIONS_MAX: Final = 32

# -- relays -------------------------------------------------------------------------------
#: Relays that a node may name, to be reached through each.
RELAYS_MAX: Final = 4
#: A reservation at a relay holds so long; it is renewed four times in it, which is also how both
#: sides notice that the other is gone.
RELAY_RESERVATION_MS: Final = 120_000
RELAY_RENEW_MS: Final = 30_000
#: A relay, or whoever is behind it, that does not answer for so long is given up.
RELAY_ANSWER_MS: Final = 10_000
#: Circuits that a relay carries for members and peers that its owner named, in all; of one member
#: to others, or of others to one peer; and of one peer to one other.
RELAY_CIRCUITS_MAX: Final = 64
RELAY_CIRCUITS_OF_PEER_MAX: Final = 32
RELAY_CIRCUITS_OF_PAIR_MAX: Final = 2
#: The same for strangers, who want to join: in all, and to one peer; then the oldest makes place.
RELAY_STRANGERS_MAX: Final = 32
RELAY_STRANGERS_TO_PEER_MAX: Final = 16
#: Circuits that one stranger may open in a second, and at once.
RELAY_STRANGER_PER_S_MAX: Final = 1
RELAY_STRANGER_AT_ONCE_MAX: Final = 4
#: A stranger's circuit makes no place before this time: joining takes about one second.
RELAY_STRANGER_LEAST_MS: Final = 3_000
#: Strangers together get this share of a relay's bytes per second.
RELAY_STRANGERS_SHARE: Final = 8
#: A circuit ends after this time, and is made again if it is wanted; one of a stranger earlier.
RELAY_CIRCUIT_MS: Final = 3_600_000
RELAY_STRANGER_CIRCUIT_MS: Final = 600_000
#: A circuit that carries nothing for so long ends.
RELAY_IDLE_MS: Final = 60_000
#: Circuits that a node takes from one of its relays.
RELAY_TAKEN_MAX: Final = 64

# -- the DHT ------------------------------------------------------------------------------
#: A question on /pairio/kad/1.
KAD_QUESTION_SIZE_BYTES_MAX: Final = 16 * 1024
#: Providers, and nearer members, in one answer.
KAD_CONTACTS_MAX: Final = 8
#: Jobs in one `provide`.
KAD_JOBS_MAX: Final = 64
#: Members that one look-up asks who holds a result; and holders that it asks for the result.
KAD_ASKED_MAX: Final = 8
#: Those that are asked at once, each.
KAD_AT_ONCE: Final = 4
#: One look-up in one service takes no longer.
KAD_LOOK_MS: Final = 2_000
#: Nobody is waited for longer, dialling included.
KAD_ASK_MS: Final = 1_000
#: Look-ups that go on at once for submits; of further ones some wait, the rest goes without.
KAD_SUBMITS_AT_ONCE: Final = 8
KAD_SUBMITS_WAITING_MAX: Final = 64
#: Segments, and bytes, that one holder may give for one job.
KAD_GIVEN_SEGMENTS_MAX: Final = 128
KAD_GIVEN_SIZE_BYTES_MAX: Final = 4 * 1024 * 1024
#: Streams on /pairio/kad/1 that one peer may have open at a node, all keys of one member, and all
#: peers together.
KAD_STREAMS_PER_PEER_MAX: Final = 4
KAD_STREAMS_PER_MEMBER_MAX: Final = 16
KAD_STREAMS_MAX: Final = 64
#: Holders' answers that are made at once.
KAD_GIVEN_AT_ONCE: Final = 4
#: Members, nearest to the job's id, whom a holder tells that it has a result.
KAD_TOLD: Final = 4
#: Holders noted of one job, and those of them that are keys of one member.
KAD_PROVIDERS_PER_JOB_MAX: Final = 16
KAD_PROVIDERS_PER_MEMBER_MAX: Final = 4
#: Jobs noted of one holder.
KAD_JOBS_PER_PROVIDER_MAX: Final = 10_000
#: What is noted of all holders; beyond it, the member who has most gives up his oldest.
KAD_RECORDS_MAX: Final = 50_000
#: What a holder said is forgotten after this time; it says it again after half of it.
KAD_RECORD_MS: Final = 24 * 3600 * 1000
#: A holder tells of at most one job in this time.
KAD_PROVIDE_INTERVAL_MS: Final = 1_000
#: Members remembered in one bucket: those whose distances begin with as many zeros.
KAD_BUCKET_MAX: Final = 16
#: A member that did not answer is not asked again for so long.
KAD_FAILED_MS: Final = 60_000

# -- attempts -----------------------------------------------------------------------------
#: Attempts of a request that machines may lose before it is exhausted.
ATTEMPTS_MAX: Final = 8
#: Doublings of the pause before a node is asked again that did not take what it was awarded.
STRIKES_MAX: Final = 6
#: Runs that a node accepts ahead for each slot.
BACKLOG_PER_SLOT_MAX: Final = 4
#: Open runs that a coordinator looks at in one turn.
AWARDS_PER_LOOK: Final = 256
#: Less than this of a job's inputs, held by somebody, has no say in who is asked to run it.
HELD_SIZE_BYTES_MIN: Final = 1024 * 1024
#: Inputs of which a coordinator remembers who holds them.
HELD_CONTENTS_MAX: Final = 4096

#: An exclusive run is ended so long before its lease, by its own node's clock.
EXCLUSIVE_MARGIN_MS: Final = 1_000
#: Renewals of an exclusive run's lease that may be unanswered; older ones are not waited for.
RENEWALS_OPEN_MAX: Final = 8

# -- evidence -----------------------------------------------------------------------------
#: Blocks of one file or folder that are walked.
CONTENT_BLOCKS_MAX: Final = 1_000_000
#: Entries of one folder that is listed or made, and shards that it is read from.
FOLDER_ENTRIES_MAX: Final = 100_000
#: From this size on a job that reads an input by CID as a stream has only what it reads fetched.
STREAMED_SIZE_BYTES_MIN: Final = 64 * 1024 * 1024
#: Results that one export or verification rests on.
EVIDENCE_RESULTS_MAX: Final = 10_000
#: Changes, segments and definitions of one export, which are held in memory.
EVIDENCE_SIZE_BYTES_MAX: Final = 512 * 1024 * 1024
#: Entries of one part of an export's manifest: a part is a block that Kubo takes.
EXPORT_PART_ENTRIES_MAX: Final = 2048
#: Parts of an export's manifest.
EXPORT_PARTS_MAX: Final = 1024
#: A block of a file, and so a section of a CAR; Kubo takes blocks of 2 MiB.
CONTENT_BLOCK_SIZE_BYTES_MAX: Final = 2 * 1024 * 1024
#: The header of a CAR: a few roots.
CAR_HEADER_SIZE_BYTES_MAX: Final = 64 * 1024

# -- resources ----------------------------------------------------------------------------
#: CPUs that a request may ask for.
CPU_MILLICORES_MAX: Final = 4096 * 1000
#: Memory that a request may ask for.
MEMORY_MIB_MAX: Final = 64 * 1024 * 1024
#: GPUs that a request may ask for.
GPUS_MAX: Final = 1024
#: Wall time that a stranger's request may ask for.
GUEST_TIME_MS_MAX: Final = 24 * 3600 * 1000
#: Wall time that a request may ask for.
TIME_MS_MAX: Final = 366 * 24 * 3600 * 1000

# -- one job ------------------------------------------------------------------------------
# What a job may use besides what it asked for. Passing one of these is the job's own failure;
# passing one that is tighter on one node is that node's, and another is tried.
#: Processes and threads of a job at a time.
JOB_PROCESSES_MAX: Final = 512
#: Files that each process of a job may have open at a time.
JOB_OPEN_FILES_MAX: Final = 4096
#: What a job may keep on the disk at a time, and what its outputs may have together.
JOB_DISK_BYTES_MAX: Final = 100 * 1024**3
#: Files and folders that a job may keep at a time.
JOB_FILES_MAX: Final = 500_000

assert GUEST_REQUESTS_OPEN_MAX * 2 < REQUESTS_OPEN_PER_AUTHOR_MAX
assert SEGMENT_SIZE_BYTES_MAX < FRAME_SIZE_BYTES_MAX
assert CHANGE_SIZE_BYTES_MAX < FRAME_SIZE_BYTES_MAX
assert DEFINITION_SIZE_BYTES_MAX < SEGMENT_SIZE_BYTES_MAX
assert PRESENCE_INTERVAL_MS * 2 < PRESENCE_EXPIRY_MS
assert LOG_AGE_MAX_MS * 2 < RETENTION_MS
assert REQUEST_EXPIRY_MS < RETENTION_MS
assert HOME_NODES < LOOKUP_ASKED <= 8
assert KAD_ASK_MS * (KAD_ASKED_MAX // KAD_AT_ONCE) <= KAD_LOOK_MS
